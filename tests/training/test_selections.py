# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every criterion and every selector in the registries trains end to end; one that has no row here fails."""

from __future__ import annotations

import math

import pytest

from jest_hf.selection import CRITERIA, SELECTIONS
from tests.trainers import logged, make_trainer


# By criterion: the models that score, and whether pairs of examples have scores.
SCORED_BY = {
    "learnability": ({"learner", "reference"}, True),
    "easy_reference": ({"reference"}, True),
    "hard_learner": ({"learner"}, True),
}

# By selector: rows of a super-batch, for 8 that are trained on, and whether the draw costs FLOPs.
SUPER_BATCH = {"joint": (32, True), "independent": (32, False), "top_k": (32, False), "uniform": (8, False)}


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_trains(tmp_path, name):
    assert name in SCORED_BY, f"criterion {name!r} has no row in SCORED_BY: add one"
    models, joint = SCORED_BY[name]
    assert CRITERIA[name].name == name and CRITERIA[name].joint == joint
    trainer = make_trainer(tmp_path, criterion=name, selection="joint" if joint else "independent", max_steps=2)
    trainer.train()
    trainer.create_model_card()
    flops = trainer.run_flops
    scored = {model for model, spent in (("learner", flops.scoring), ("reference", flops.reference)) if spent}
    assert scored == set(CRITERIA[name].weights) == models
    shown = logged(trainer, f"selected/{CRITERIA[name].shown}")
    assert len(shown) == 2 and all(map(math.isfinite, shown))
    card = (tmp_path / "README.md").read_text()
    assert CRITERIA[name].title in card and "(selection.png)" in card


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selector_trains(tmp_path, name):
    assert name in SUPER_BATCH, f"selector {name!r} has no row in SUPER_BATCH: add one"
    rows, costs = SUPER_BATCH[name]
    assert SELECTIONS[name].name == name
    trainer = make_trainer(tmp_path, selection=name, max_steps=2)
    trainer.train()
    assert trainer.statistics.seen == 2 * rows and trainer.statistics.trained == 16
    assert (trainer.run_flops.selection > 0) == costs
    trainer.create_model_card()
    assert f"trained with jest_hf: {SELECTIONS[name].title}." in (tmp_path / "README.md").read_text()
    compared = f"{name}/learnability" if SELECTIONS[name].uses_criterion else name
    other = make_trainer(tmp_path / "other", compare_selectors=[compared], max_steps=1)
    other.train()
    assert 0.0 <= logged(other, f"compare/{compared}/overlap")[0] <= 1.0


def test_there_is_no_row_of_an_entry_that_is_gone():
    assert SCORED_BY.keys() == CRITERIA.keys() and SUPER_BATCH.keys() == SELECTIONS.keys()
