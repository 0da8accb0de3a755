# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Criteria from outside the package: a weighted sum of the two losses, and a score that is none."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from jest_hf import JESTConfig
from jest_hf.selection import CRITERIA, Criterion
from tests.extensions.runs import ROWS, highest, pair_losses, pair_trainer, selected
from tests.trainers import logged


HALF_REFERENCE = Criterion("half_reference", learner=1, reference=-0.5, title="learner minus half of the reference")


class NearlyLearned(Criterion):
    """Prefer examples on which the learner is a little worse than the reference, and not much."""

    def own(self, learner: Tensor | None, reference: Tensor | None) -> Tensor:
        gap = learner - reference
        return -(gap - 0.1).abs()


NEARLY_LEARNED = NearlyLearned("nearly_learned", learner=1, reference=-1, joint=False, title="nearly learned examples")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for criterion in (HALF_REFERENCE, NEARLY_LEARNED):
        monkeypatch.setitem(CRITERIA, criterion.name, criterion)


def test_a_weighted_sum_selects_what_it_ranks_highest(tmp_path):
    trainer = pair_trainer(tmp_path, selection="top_k", criterion="half_reference", max_steps=3)
    first, *_ = selected(trainer)
    assert set(first) == highest(pair_losses(0) - 0.5 * pair_losses(1))
    assert set(first) != highest(pair_losses(0) - pair_losses(1))  # as the built-in criterion would have it
    assert trainer.step_flops.scoring > 0 and trainer.step_flops.reference > 0


def test_the_model_card_has_its_title_and_the_plot_of_what_is_shown(tmp_path):
    trainer = pair_trainer(tmp_path, criterion="half_reference")
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert re.search(r"\| criterion +\| learner minus half of the reference +\|", card)
    assert "(selection.png)" in card and (tmp_path / "selection.png").exists()
    assert HALF_REFERENCE.shown == "learnability" and len(logged(trainer, "selected/learnability")) == 3


def test_pairs_have_scores_too_so_it_can_be_selected_jointly_and_compared(tmp_path):
    selectors = ["joint/half_reference", "joint/learnability"]
    trainer = pair_trainer(tmp_path, criterion="half_reference", compare_selectors=selectors, max_steps=1)
    assert len(selected(trainer)[0]) == 8
    assert logged(trainer, "compare/joint/half_reference/overlap") == [1.0]


def test_a_score_that_is_no_sum_selects_what_it_ranks_highest(tmp_path):
    trainer = pair_trainer(tmp_path, selection="top_k", criterion="nearly_learned", max_steps=1)
    expected = highest(-(pair_losses(0) - pair_losses(1) - 0.1).abs())
    assert set(selected(trainer)[0]) == expected != highest(pair_losses(0) - pair_losses(1))
    (independent,) = selected(pair_trainer(tmp_path, selection="independent", criterion="nearly_learned", max_steps=1))
    assert len(set(independent)) == 8


def test_a_score_that_is_no_sum_is_refused_where_pairs_need_scores(tmp_path):
    with pytest.raises(ValueError, match="criterion='nearly_learned' scores each example by itself"):
        pair_trainer(tmp_path, selection="joint", criterion="nearly_learned")
    with pytest.raises(ValueError, match="selector 'joint/nearly_learned' needs scores of pairs"):
        pair_trainer(tmp_path, compare_selectors=["joint/nearly_learned"])
    with pytest.raises(ValueError, match="'nearly_learned' overrides own, .* set joint=False"):
        NearlyLearned("nearly_learned", learner=1, reference=-1)


def test_one_loss_needs_one_model_and_is_what_is_plotted(tmp_path, monkeypatch):
    monkeypatch.setitem(CRITERIA, "easy_learner", Criterion("easy_learner", learner=-1))
    trainer = pair_trainer(tmp_path, reference=None, selection="top_k", criterion="easy_learner")
    assert set(selected(trainer)[0]) == highest(-pair_losses(0))
    assert trainer.ref_model is None and trainer.run_flops.reference == 0
    trainer.create_model_card()
    assert len(logged(trainer, "rejected/learner_loss")) == 3 and (tmp_path / "selection.png").exists()
    assert Criterion("hard_reference", reference=1).shown == "reference_loss"


def test_an_unknown_criterion_is_told_the_registered_names(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="criterion='nearly' is not known; choose one of .*nearly_learned"):
        JESTConfig(output_dir=str(tmp_path), criterion="nearly")
    monkeypatch.delitem(CRITERIA, "nearly_learned")
    with pytest.raises(ValueError, match="criterion='nearly_learned' is not known"):
        JESTConfig(output_dir=str(tmp_path), criterion="nearly_learned")


def test_models_with_labels_take_it_too():
    """A criterion sees losses of examples, of whichever objective."""
    learner, reference = torch.rand(len(ROWS)), torch.rand(len(ROWS))
    assert torch.equal(HALF_REFERENCE.own(learner, reference), learner - 0.5 * reference)
