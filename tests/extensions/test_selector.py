# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Selectors from outside the package: one that goes by a criterion, and one that needs no scores."""

from __future__ import annotations

import pytest
import torch

from jest_hf import JESTConfig
from jest_hf.selection import SELECTIONS, Ask, DrawKey, PairwiseScores, Pool, Selection, Selector
from tests.distributed.processes import run
from tests.extensions.runs import highest, pair_losses, pair_trainer, selected
from tests.trainers import logged


class MiddleScores(Selector):
    """The examples whose scores lie in the middle, neither the easiest nor the hardest."""

    name = "middle"
    title = "selection of the examples with the middle scores"

    def select(self, pool: Pool, ask: Ask, key: DrawKey) -> Selection:
        scores = ask(self.models())
        own = PairwiseScores.from_embeddings(
            scores.learner, scores.reference, criterion=self.criterion, loss=self.loss
        ).diagonal()
        # Broken rows cannot be trained on, and lie at the end.
        own = pool.ranks.gather_rows(own.masked_fill(~pool.rows["valid"], torch.inf))
        n_readable = sum(pool.shares.readable)
        start = (n_readable - pool.size) // 2
        return Selection(own.argsort()[start : start + pool.size])


class Newest(Selector):
    """The examples with the highest ids: no model has to score them."""

    name = "newest"
    uses_criterion = False
    title = "selection of the newest examples"
    sentence = "The newest examples were chosen."

    def select(self, pool: Pool, ask: Ask, key: DrawKey) -> Selection:
        ids = pool.rows["example_id"].masked_fill(~pool.rows["valid"], -1)
        return Selection(pool.ranks.gather_rows(ids).argsort(descending=True)[: pool.size])


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for selector in (MiddleScores, Newest):
        monkeypatch.setitem(SELECTIONS, selector.name, selector)


def test_it_selects_what_it_should(tmp_path):
    trainer = pair_trainer(tmp_path, selection="middle", max_steps=2)
    learnability = pair_losses(0) - pair_losses(1)
    without_the_highest = highest(learnability, 20) - highest(learnability, 12)
    assert set(selected(trainer)[0]) == without_the_highest
    assert len(logged(trainer, "selected/learnability")) == 2


def test_it_is_compared_with_the_selection_of_the_run(tmp_path):
    selectors = ["middle/learnability", "middle/hard_learner", "newest", "uniform"]
    trainer = pair_trainer(tmp_path, selection="top_k", compare_selectors=selectors, max_steps=1)
    (ids,) = selected(trainer)
    middle = pair_losses(0)
    middle = highest(middle, 20) - highest(middle, 12)
    (overlap,) = logged(trainer, "compare/middle/hard_learner/overlap")
    assert overlap == len(middle & set(ids)) / 8
    assert logged(trainer, "compare/middle/learnability/overlap") == [0.0]  # the highest of 32 are not the middle
    assert logged(trainer, "compare/newest/overlap") == [len(set(range(24, 32)) & set(ids)) / 8]


def test_its_costs_are_those_of_the_models_that_it_uses(tmp_path):
    middle = pair_trainer(tmp_path, selection="middle", max_steps=2)
    top = pair_trainer(tmp_path, selection="top_k", max_steps=2)
    middle.train(), top.train()
    assert middle.run_flops == top.run_flops and middle.run_flops.scoring > 0 and middle.run_flops.reference > 0
    newest = pair_trainer(tmp_path, selection="newest", reference=None, max_steps=2)
    newest.train()
    assert newest.run_flops.total == newest.run_flops.training == middle.run_flops.training


def test_no_model_has_to_score_for_a_selector_that_does_not_ask(tmp_path):
    trainer = pair_trainer(tmp_path, selection="newest", reference=None, record_selection=True, max_steps=2)
    assert selected(trainer) == [list(range(31, 23, -1))] * 2
    assert trainer.statistics.seen == 64 and trainer.statistics.trained == 16
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "trained with jest_hf: selection of the newest examples." in card
    assert "a super-batch was loaded, and only a sub-batch of it was trained on.\nThe newest examples were" in card
    assert "criterion" not in card and "learnability" not in card


def test_the_card_says_how_it_selects(tmp_path):
    trainer = pair_trainer(tmp_path, selection="middle", max_steps=1)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "trained with jest_hf: selection of the examples with the middle scores." in card
    assert "scored by the learner and a reference model, and only a sub-batch" in card
    assert "by its own score" not in card and "learnability (loss of the learner minus" in card


def test_names_that_are_not_complete_are_refused_with_those_that_are_there(tmp_path):
    for wrong in ("middle", "newest/learnability", "newest/"):
        with pytest.raises(ValueError, match=f"'uniform', 'newest', or joint .* or middle with .* got '{wrong}'"):
            JESTConfig(output_dir=str(tmp_path), compare_selectors=[wrong])
    assert str(Selector.parse("middle/hard_learner", gain=2.0)) == "middle/hard_learner"
    assert str(Selector.parse("newest")) == "newest"


def train_on_this_rank(folder: str) -> list[list[int]]:
    SELECTIONS[MiddleScores.name] = MiddleScores  # in a process of this test's own
    return selected(pair_trainer(folder, selection="middle", per_device_train_batch_size=4, max_steps=1))


def test_two_ranks_select_what_one_selects(tmp_path):
    (one,) = selected(pair_trainer(tmp_path / "one", selection="middle", max_steps=1))
    (first,), (second,) = run(2, train_on_this_rank, str(tmp_path / "two"))
    assert {*first, *second} == set(one)
