# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Two stages: cached scores draw the super-batch from more candidates, and the step selects from it as always."""

from __future__ import annotations

import pytest
import torch

import jest_hf.data.collator as collator_module
from jest_hf import JESTConfig
from jest_hf.batch import ContrastiveEmbeddings
from jest_hf.report import read_rejected, read_selections
from jest_hf.selection import PairwiseScores, gumbel_noise
from tests.helpers import random_rows
from tests.objectives.labelled import image_rows, tiny_vit, tiny_vit_processor
from tests.trainers import logged, make_trainer


# 10 : 2 : 1 on 8 rows: of 80 candidates 16 are loaded, and 8 of these trained on.
COMMON = {"preset": "two_stage", "record_selection": True}


def trainer_of(folder, n_rows=240, **changes):
    rows = changes.pop("rows", None)
    changes = {"filter_ratio": None, **COMMON, **changes}
    return make_trainer(folder, rows=rows if rows is not None else random_rows(n_rows), **changes)


def ledger(folder):
    return read_selections(folder / "selections.parquet").to_pydict()


def weights(trainer):
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


class Seen:
    """The ids of each super-batch that reaches the step."""

    def __init__(self, trainer):
        self.ids = []
        pool = trainer.parts.step.pool

        def spy(super_batch, step):
            self.ids.append(super_batch["example_id"].tolist())
            return pool(super_batch, step)

        trainer.parts.step.pool = spy


def literal_first_stage(trainer, candidates, step, size):
    """The candidates with the largest sum of minus the reference's own loss and Gumbel noise, by position."""
    cached = trainer.reference.cache.take(torch.tensor(candidates))
    assert isinstance(cached, ContrastiveEmbeddings)
    scores = PairwiseScores.from_embeddings(reference=cached, criterion="easy_reference", loss="sigmoid").diagonal()
    noise = gumbel_noise(trainer.args.seed + 2**61, step, 1, len(candidates))[0]
    best = (scores.double() + noise).sort(descending=True, stable=True).indices[:size]
    return [candidates[position] for position in best.sort().values.tolist()]


def test_the_first_stage_draws_by_the_reference_and_the_second_from_what_is_left(tmp_path, monkeypatch):
    decoded = []
    decode = collator_module.decode_pixels
    monkeypatch.setattr(
        collator_module, "decode_pixels", lambda *args, **more: decoded.append(1) or decode(*args, **more)
    )
    trainer = trainer_of(tmp_path)
    trainer.plan.cache_reference(trainer.train_dataset, trainer.data_collator)
    seen = Seen(trainer)
    decoded.clear()
    trainer.train()
    assert len(decoded) == 3 * 16, "a step decodes exactly its super-batch"
    order = [index for _, index in trainer.get_train_dataloader().batch_sampler.sampler]
    for step in (1, 2, 3):
        candidates = order[(step - 1) * 80 : step * 80]
        assert seen.ids[step - 1] == literal_first_stage(trainer, candidates, step, 16)
    written = ledger(tmp_path)
    for step in (1, 2, 3):
        chosen = [one for one, at in zip(written["example_id"], written["step"], strict=True) if at == step]
        assert len(chosen) == 8 and set(chosen) < set(seen.ids[step - 1])
    assert logged(trainer, "examples_seen")[-1] == 240
    log = trainer.state.log_history[0]
    assert log["prefilter/selected/reference_loss"] < log["prefilter/rejected/reference_loss"]
    assert log["prefilter/effective_sample_size/chunk_01"] > 1


def test_a_step_costs_one_and_two_thirds(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    step = trainer.step_flops
    assert (step.training + step.scoring) / step.training == pytest.approx(1 + 2 / 3)
    assert trainer.statistics.flops.total == pytest.approx(3 * step.total)
    assert trainer.statistics.flops.scoring == pytest.approx(3 * step.scoring)


def test_the_ledger_has_rejected_rows_of_both_stages(tmp_path):
    trainer = trainer_of(tmp_path)
    seen = Seen(trainer)
    trainer.train()
    rejected = read_rejected(tmp_path / "selections.parquet").to_pylist()
    for step in (1, 2, 3):
        loaded = set(seen.ids[step - 1])
        by_stage = {
            stage: {row["example_id"] for row in rejected if (row["step"], row["stage"]) == (step, stage)}
            for stage in ("prefilter", "step")
        }
        assert len(by_stage["prefilter"]) == 32 and not by_stage["prefilter"] & loaded
        assert len(by_stage["step"]) == 8 and by_stage["step"] < loaded
    assert set(ledger(tmp_path)["stage"]) == {"step"} and None not in ledger(tmp_path)["score"]


def test_a_resumed_run_selects_the_same(tmp_path):
    changes = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = trainer_of(tmp_path / "whole", **changes)
    whole.train()
    trainer_of(tmp_path / "resumed", **{**changes, "max_steps": 4}).train()
    resumed = trainer_of(tmp_path / "resumed", **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-4"))
    assert ledger(tmp_path / "resumed") == ledger(tmp_path / "whole")
    assert torch.equal(weights(resumed), weights(whole))


def test_the_warm_up_takes_rows_as_they_come(tmp_path):
    trainer = trainer_of(tmp_path, selection_warmup_steps=1)
    seen = Seen(trainer)
    trainer.train()
    order = [index for _, index in trainer.get_train_dataloader().batch_sampler.sampler]
    assert ledger(tmp_path)["example_id"][:8] == order[:8]
    assert seen.ids[0] == order[:16]  # not one of the 80 was scored
    assert seen.ids[1] == literal_first_stage(trainer, order[80:160], 2, 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"criterion": "hard_learner"},
        {"criterion": "easy_reference"},
        {"selection": "independent"},
        {"scoring_view": "image:8"},
        {"compare_selectors": ["uniform"]},
        {"filter_ratio_ramp_steps": 2},
        {"distillation_weight": 1.0},
        {"selection_scope": "local"},
        {"dataloader_num_workers": 2},
    ],
    ids=str,
)
def test_it_goes_with_every_second_stage(tmp_path, changes):
    trainer = trainer_of(tmp_path, **changes)
    trainer.train()
    assert trainer.state.global_step == 3 and len(ledger(tmp_path)["step"]) == 24


def test_labelled_rows_by_cached_losses(tmp_path):
    trainer = make_trainer(
        tmp_path,
        model=tiny_vit(0),
        reference=tiny_vit(1),
        rows=image_rows(240),
        processor=tiny_vit_processor(),
        **{**COMMON, "selection": "top_k", "filter_ratio": None},
    )
    trainer.train()
    assert logged(trainer, "examples_seen")[-1] == 240 and logged(trainer, "examples_trained")[-1] == 24


def test_the_card_tells_of_the_first_stage(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.create_model_card()
    assert "candidates dropped by cached scores before decoding" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefilter_ratio": 1.0}, r"prefilter_ratio=1.0 must be in \[0, 1\)"),
        ({"prefilter_ratio": 0.8}, "prefilter_ratio=0.8 needs the scores of a cached reference"),
        ({"prefilter_ratio": 0.01, "cache_reference": True}, "prefilter_ratio=0.01 drops nothing"),
        (
            {"prefilter_ratio": 0.8, "cache_reference": True, "selection": "uniform"},
            "prefilter_ratio=0.8 has no use with selection='uniform'",
        ),
    ],
)
def test_ratios_that_do_not_fit_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        JESTConfig(output_dir=tmp_path, per_device_train_batch_size=8, use_cpu=True, **settings)


def test_data_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="train_dataset has 79 rows, fewer than one super-batch of 80"):
        trainer_of(tmp_path, n_rows=79)
