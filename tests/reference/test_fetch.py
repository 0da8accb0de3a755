# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Cached scores come with the super-batch: the same bits as read in the step, and the step reads nothing."""

from __future__ import annotations

import threading

import datasets
import pytest
import torch

from jest_hf import JESTDataCollator
from jest_hf.batch import as_bits, from_bits, without_cached
from jest_hf.data.rows import Rows
from jest_hf.reference import CachedReference, FetchingCollator, ReferenceCache
from jest_hf.reference.losses import IrreducibleLosses
from jest_hf.report import read_selections
from tests.helpers import random_rows, tiny_siglip_processor
from tests.objectives.labelled import image_rows, tiny_vit, tiny_vit_processor
from tests.reference.caching import make_cache, super_batch
from tests.trainers import make_trainer


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_bits_are_the_values(dtype):
    values = torch.randn(5, 3).to(dtype)
    bits = as_bits(values)
    assert not bits.is_floating_point() and bits.data_ptr() == values.data_ptr()
    assert torch.equal(from_bits(bits), values.float())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_a_worker_fetches_is_what_the_step_would_read(tmp_path, dtype):
    rows = [{**row, "text": [row["text"], "a red square"][: 1 + i % 2]} for i, row in enumerate(random_rows(23))]
    rows[4]["image"] = b"no image"
    source = CachedReference(make_cache(tmp_path, rows, dtype=dtype))
    batch = super_batch([21, 4, 7, 7, 0], caption_number=[1, 0, 0, 1, 0])
    fetched = source.fetch(batch)
    assert set(fetched) == {"cached_image", "cached_text", "valid"}
    assert fetched["valid"].tolist() == source.readable(batch).tolist() == [True, False, True, True, True]
    batch["valid"] = fetched["valid"]
    read, with_batch = source.score(None, batch, 5), source.score(None, {**batch, **fetched}, 5)
    assert torch.equal(read.image, with_batch.image) and torch.equal(read.text, with_batch.text)
    assert with_batch.image.dtype == torch.float32 and read.logit_scale == with_batch.logit_scale
    assert set(without_cached({**batch, **fetched})) == set(batch)


def test_losses_are_fetched_too():
    losses = IrreducibleLosses(torch.tensor([0.1, 2.0, 0.0]), torch.tensor([True, True, False]), {"reference": {}})
    batch = super_batch([1, 2, 0])
    batch |= losses.fetch(batch)
    assert batch["valid"].tolist() == [True, False, True] and not batch["cached_losses"].is_floating_point()
    assert losses.score(None, batch, 3).losses.tolist() == pytest.approx([2.0, 0.0, 0.1])
    assert losses.readable(batch) is batch["valid"]


def test_a_row_that_can_be_read_since_the_cache_was_made_is_no_error(tmp_path):
    """It had one blank caption there, and its third may be drawn now."""
    rows = [{**row, "text": ["a red square"] * 3} for row in random_rows(23)]
    broken = [dict(row) for row in rows]
    broken[2]["image"] = b"no image"
    source = CachedReference(make_cache(tmp_path, broken))
    fetched = source.fetch(super_batch([1, 2], caption_number=[2, 2]))
    assert fetched["valid"].tolist() == [True, False]


def test_a_collator_adds_them(tmp_path):
    rows = random_rows(23)
    collator = JESTDataCollator(tiny_siglip_processor())
    source = CachedReference(make_cache(tmp_path, rows))
    batch = FetchingCollator(collator, source)(Rows(rows).__getitems__([(0, 3), (0, 11)]))
    assert batch["cached_image"].shape == (2, 32) and batch["pixel_values"].shape[0] == 2


def ledger(folder):
    return read_selections(folder / "selections.parquet").to_pydict()


def weights(trainer):
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


def pairs(n=100):
    return [{**row, "text": [row["text"], "a red square"][: 1 + i % 2]} for i, row in enumerate(random_rows(n))]


RUNS = {
    "joint": {},
    "workers": {"dataloader_num_workers": 2},
    "in_the_step": {"criterion": "easy_reference", "select_before_decoding": False},
    "proxy": {"scoring": "proxy"},
    "ramp": {"selection_warmup_steps": 1, "filter_ratio_ramp_steps": 3},
    "two_stages": {"prefilter_ratio": 0.5, "filter_ratio": 0.5},
    "taught": {"criterion": "hard_learner", "distillation_weight": 1.0},
    "taught_early": {"criterion": "easy_reference", "distillation_weight": 1.0},
    "taught_uniformly": {"selection": "uniform", "distillation_weight": 1.0},
    "view": {"scoring_view": "image:8", "distillation_weight": 1.0},
    "chunks": {"gradient_cache_chunk_size": 3},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_and_its_steps_read_no_cache(tmp_path, name, monkeypatch):
    changes = {"cache_reference": True, "record_selection": True, "max_steps": 5, **RUNS[name]}
    in_step, learned, taken = [], [], []

    def run(folder):
        trainer = make_trainer(folder, rows=pairs(), **changes)
        step, learn = trainer.training_step, trainer.learn

        def stepping(*given):
            in_step.append(True)
            loss = step(*given)
            in_step.pop()
            return loss

        trainer.training_step = stepping
        recorder = trainer.plan.recorder
        record = recorder.record
        recorder.record = lambda step, sub, pool: (
            taken.append(sub.rows) or taken.append(pool.rows) or record(step, sub, pool)
        )
        trainer.learn = lambda model, batch, *more: learned.append(set(batch)) or learn(model, batch, *more)
        trainer.train()
        return trainer

    with monkeypatch.context() as patched:
        patched.setattr(CachedReference, "fetch", lambda self, batch: {})
        expected = run(tmp_path / "in_step")
    stored = ReferenceCache.stored

    def outside(self, *given):
        # The draw of a coming step may run beside the step, in a thread of its own.
        assert not in_step or threading.current_thread() is not threading.main_thread()
        return stored(self, *given)

    monkeypatch.setattr(ReferenceCache, "stored", outside)
    found = run(tmp_path / "ahead")
    assert ledger(tmp_path / "ahead") == ledger(tmp_path / "in_step")
    assert torch.equal(weights(found), weights(expected))
    assert found.statistics.totals() == expected.statistics.totals()
    assert not any(name.startswith("cached_") for batch in learned for name in batch)
    # They travel with the rows of the sub-batch only where its teacher needs them.
    needed = changes.get("distillation_weight") and changes.get("criterion") != "learnability" and name != "view"
    assert any(name.startswith("cached_") for rows in taken for name in rows) == bool(needed)


@pytest.mark.parametrize("named", [False, True])
def test_a_stream_has_them_too(tmp_path, named, monkeypatch):
    names = [11 * ((7 * index) % 96) for index in range(96)] if named else list(range(96))
    rows = datasets.Dataset.from_list(random_rows(96))
    keyed = rows.add_column("example_id", names)
    cache = make_cache(tmp_path / "cache", keyed if named else rows, shard_rows=40)
    stream = keyed.to_iterable_dataset(4)
    seen = []
    trainer = make_trainer(tmp_path / "run", rows=stream, reference_cache=str(cache.folder), dataloader_num_workers=1)
    step = trainer.training_step
    trainer.training_step = lambda model, batch, *more: seen.append(batch) or step(model, batch, *more)
    trainer.train()
    assert trainer.state.global_step == 3
    for batch in seen:
        image = cache.take(cache.rows_of(batch["example_id"])).image
        assert torch.equal(from_bits(batch["cached_image"]), image)


def test_labelled_rows_by_cached_losses(tmp_path, monkeypatch):
    def run(folder):
        trainer = make_trainer(
            folder,
            model=tiny_vit(0),
            reference=tiny_vit(1),
            rows=image_rows(80),
            processor=tiny_vit_processor(),
            selection="top_k",
            cache_reference=True,
            record_selection=True,
        )
        trainer.train()
        return weights(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(IrreducibleLosses, "fetch", lambda self, batch: {})
        expected = run(tmp_path / "in_step")
    assert torch.equal(run(tmp_path / "ahead"), expected)
    assert ledger(tmp_path / "ahead") == ledger(tmp_path / "in_step")


@pytest.mark.parametrize(("given", "expected"), [(None, True), ({"non_blocking": False}, False)])
def test_copies_to_a_gpu_do_not_wait_unless_the_user_says_so(tmp_path, monkeypatch, given, expected):
    from jest_hf import JESTConfig

    monkeypatch.setattr(JESTConfig, "device", torch.device("cuda"))
    options = {"output_dir": str(tmp_path), "report_to": "none", "bf16": False, "accelerator_config": given}
    assert JESTConfig(**options).accelerator_config.non_blocking == expected
    assert not JESTConfig(**options, dataloader_pin_memory=False).accelerator_config.non_blocking
    monkeypatch.setattr(JESTConfig, "device", torch.device("cpu"))
    assert not JESTConfig(**options).accelerator_config.non_blocking
