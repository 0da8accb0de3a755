# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Runs on a stream that go on from a checkpoint: the same selections and weights, and few rows read again."""

from __future__ import annotations

import json

import datasets
import pytest
import torch

from jest_hf.data.continued import continued
from jest_hf.report import read_selections
from jest_hf.training.checkpoints import MANIFEST
from jest_hf.training.doubtful import _of_shards
from jest_hf.training.loaders import first_row
from tests.data.resumed_streams import READ, count
from tests.helpers import random_rows
from tests.trainers import make_trainer


SHARD = 16


def generate(shards):
    for shard in shards:
        for number, row in enumerate(random_rows(SHARD, seed=shard)):
            count()
            yield {**row, "example_id": shard * SHARD + number}


def stream(n_shards=10):
    return datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": list(range(n_shards))})


def shuffled():
    return stream().shuffle(seed=3, buffer_size=20)


def trained(folder, rows, resume=None, **changes):
    options = {"record_selection": True, "save_strategy": "steps", "save_steps": 6, "lr_scheduler_type": "constant"}
    trainer = make_trainer(folder, rows=rows, **{**options, "max_steps": 9, **changes})
    READ.value = 0
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def result(trainer, folder):
    columns = ["step", "rank", "order", "example_id"]
    weights = torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
    return read_selections(folder / "selections.parquet").select(columns).to_pydict(), weights.tolist()


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_resumed_run_selects_the_same_and_reads_few_rows_again(tmp_path, n_workers):
    changes = {"dataloader_num_workers": n_workers, "dataloader_prefetch_factor": 1 if n_workers else None}
    whole = trained(tmp_path / "whole", shuffled(), **changes)
    trained(tmp_path / "resumed", shuffled(), max_steps=6, **changes)
    resumed = trained(tmp_path / "resumed", shuffled(), tmp_path / "resumed" / "checkpoint-6", **changes)
    assert result(resumed, tmp_path / "resumed") == result(whole, tmp_path / "whole")
    if n_workers == 0:  # six super-batches are behind it, in the second pass over 160 rows
        assert READ.value <= 20 + 10 * (2 + SHARD // 2) + 4 * resumed.args.per_device_super_batch_size


def test_a_checkpoint_without_the_position_goes_on_by_reading_all_again(tmp_path, caplog):
    whole = trained(tmp_path / "whole", stream())
    trained(tmp_path / "resumed", stream(), max_steps=6)
    checkpoint = tmp_path / "resumed" / "checkpoint-6"
    (checkpoint / "stream_position_0.json").unlink()
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    assert manifest["files"].pop("stream_position_0.json")["bytes"] > 0
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    resumed = trained(tmp_path / "resumed", stream(), str(checkpoint))
    assert result(resumed, tmp_path / "resumed") == result(whole, tmp_path / "whole")
    said = [one.getMessage() for one in caplog.records if "read again, undecoded" in one.getMessage()]
    assert len(said) == 1 and "the rows of its first 6 super-batches" in said[0]
    assert READ.value >= 9 * resumed.args.per_device_super_batch_size
    assert not list((tmp_path / "resumed").glob("checkpoint-9/stream_position*"))  # nor has the next checkpoint one


def test_the_first_row_by_which_runs_are_compared_is_that_of_the_stream_itself():
    """Checkpoints of earlier versions have it too, and blocks have another first row."""
    first = next(iter(shuffled()))["example_id"]
    assert first_row(shuffled(), "image", True)["example_id"] == first
    assert next(iter(continued(shuffled())))["example_id"] != first


def test_another_number_of_loader_workers_is_refused_in_one_sentence(tmp_path):
    trained(tmp_path, stream(), max_steps=6)
    with pytest.raises(ValueError, match="dataloader_num_workers=2: .* set dataloader_num_workers=0"):
        trained(tmp_path, stream(), True, dataloader_num_workers=2)


def test_a_stream_without_a_seed_is_refused_when_the_trainer_is_made(tmp_path):
    with pytest.raises(ValueError, match="shuffled or interleaved without a seed"):
        make_trainer(tmp_path, rows=stream().shuffle(buffer_size=20))


@pytest.mark.parametrize(
    ("n_shards", "n_workers", "said"),
    [(4, 4, None), (3, 5, "so 2 of its loader workers have nothing to read; set dataloader_num_workers=3")],
)
def test_idle_loader_workers_are_said_when_the_trainer_is_made(tmp_path, caplog, n_shards, n_workers, said):
    make_trainer(tmp_path, rows=stream(n_shards), dataloader_num_workers=n_workers)
    found = [one.getMessage() for one in caplog.records if "shard(s)" in one.getMessage()]
    assert len(found) == (said is not None) and all(said in one for one in found)


def test_shards_that_ranks_cannot_share_are_said():
    class Args:
        world_size, dataloader_num_workers = 2, 4

    assert [one.split(",")[0] for one in _of_shards(Args, stream(3))] == [
        "train_dataset is a stream of 3 shard(s)",
        "dataloader_num_workers=4: a process reads 3 shard(s) of the stream",
    ]
    assert _of_shards(Args, stream(8)) == [] == _of_shards(Args, random_rows(3))
