# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A super-batch without one readable row is a step that trains on nothing; several in a row end the run."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from jest_hf.data.rows import EpochSampler
from jest_hf.report import read_selections
from jest_hf.training.step import MOST_EMPTY
from tests.helpers import random_rows
from tests.trainers import make_trainer


N_ROWS, SEED = 96, 5
EARLY = {"criterion": "easy_reference", "cache_reference": True}
KINDS = {
    "uniform": {"selection": "uniform", "per_device_train_batch_size": 32},
    "joint": {},
    "cached": {"cache_reference": True},
    "early": EARLY,
    "two stages": {"preset": "two_stage", "filter_ratio": 0.5, "prefilter_ratio": 0.5},
    "gradient cache": {"gradient_cache_chunk_size": 3},
    "proxy": {"scoring": "proxy"},
}


def rows_without(steps, size=32):
    """Rows of which those of some super-batches have no image."""
    order = list(EpochSampler(N_ROWS, seed=SEED))
    rows = random_rows(N_ROWS)
    for step in steps:
        for _, index in order[(step - 1) * size : step * size]:
            rows[index]["image"] = b"no image"
    return rows


class Weights(TrainerCallback):
    def __init__(self):
        self.after = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after.append(torch.cat([value.detach().flatten() for value in model.parameters()]))


def train(folder, kind, steps, resume=None, **changes):
    weights = Weights()
    trainer = make_trainer(
        folder,
        rows=rows_without(steps),
        options={"callbacks": [weights]},
        settings={"weight_decay": 0.1, "seed": SEED, "record_selection": True, **KINDS[kind], **changes},
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, weights.after


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_without_readable_rows_changes_nothing(tmp_path, kind, caplog):
    trainer, after = train(tmp_path, kind, [2], save_strategy="steps", save_steps=1)
    assert len(after) == 3 and torch.equal(after[0], after[1]) and not torch.equal(after[1], after[2])
    assert "step 2: only 0 of the" in caplog.text
    assert re.search(r"\(example \d+: the image is in no format.*\); the step trains on nothing", caplog.text)
    steps = read_selections(trainer.ledger.path)["step"].to_pylist()
    assert set(steps) == {1, 3}
    assert trainer.statistics.skipped == 32
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and np.isfinite(losses).all()

    again, resumed = train(tmp_path, kind, [2], resume=str(tmp_path / "checkpoint-1"))
    assert torch.equal(resumed[-1], after[-1])
    assert read_selections(again.ledger.path)["step"].to_pylist() == steps


@pytest.mark.parametrize("kind", ["joint", "early"])
def test_several_in_a_row_end_the_run_with_the_reasons(tmp_path, kind):
    with pytest.raises(
        ValueError, match=rf"for the {MOST_EMPTY}th step in a row \(example \d+: the image is in no format"
    ):
        train(tmp_path, kind, [1, 2, 3], max_steps=20)
