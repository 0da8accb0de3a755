# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The figures that a step logs about its selection (over ranks: tests/distributed/test_sub_batch.py)."""

from __future__ import annotations

import pytest
import torch

from jest_hf.losses import LOSSES
from jest_hf.report import compare_selected
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
