# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics of a step's selection (several ranks: tests/distributed/test_sub_batch.py)."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerState

from jest_hf.losses import LOSSES
from jest_hf.report import RunStatistics, compare_selected
from jest_hf.selection import PointwiseLosses
from tests.selection.models import learner_and_reference


def test_losses_of_single_examples_are_averaged():
    parts = {
        "selected": {
            "learner": PointwiseLosses(torch.tensor([3.0, 5.0])),
            "reference": PointwiseLosses(torch.tensor([1.0, 0.5])),
        },
        "rejected": {
            "learner": PointwiseLosses(torch.tensor([0.5, 0.25])),
            "reference": PointwiseLosses(torch.tensor([2.0, 0.0])),
        },
    }
    assert compare_selected(parts, "sigmoid") == {
        "selected/learner_loss": 4.0, "selected/reference_loss": 0.75, "selected/learnability": 3.25,
        "rejected/learner_loss": 0.375, "rejected/reference_loss": 1.0, "rejected/learnability": -0.625,
    }  # fmt: skip


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_pairs_are_taken_as_one_batch(loss):
    models = dict(zip(("learner", "reference"), learner_and_reference("clusters", 30), strict=True))
    metrics = compare_selected({"selected": models}, loss)
    for name, model in models.items():
        expected = LOSSES[loss](model.image.double(), model.text.double(), model.logit_scale, model.logit_bias)
        assert metrics[f"selected/{name}_loss"] == pytest.approx(expected.item(), rel=1e-5)
    difference = metrics["selected/learner_loss"] - metrics["selected/reference_loss"]
    assert metrics["selected/learnability"] == pytest.approx(difference)


def test_one_model_has_a_loss_and_no_learnability():
    metrics = compare_selected({"selected": {"reference": PointwiseLosses(torch.ones(2))}}, "sigmoid")
    assert metrics == {"selected/reference_loss": 1.0}
    assert compare_selected({"selected": {}}, "sigmoid") == {}


def test_seconds_go_on_after_a_resume():
    saved = RunStatistics(n_examples=4, settings={})
    first = saved.pop()["elapsed_seconds"]
    assert 0 <= first < 5
    state = TrainerState(global_step=3, log_history=[{"elapsed_seconds": 100.0}, {"eval_loss": 1.0}])
    state.stateful_callbacks = {"RunStatistics": saved.state()}
    resumed = RunStatistics(n_examples=4, settings={})
    resumed.on_train_begin(None, state, None)
    assert 100 <= resumed.pop()["elapsed_seconds"] < 105
    resumed.on_train_begin(None, TrainerState(), None)  # a fresh start begins at 0
    assert resumed.pop()["elapsed_seconds"] < 5
