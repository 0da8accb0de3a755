# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every registered criterion against a table of weights, and a criterion that is no weighted sum."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jest_hf.selection import (
    CRITERIA,
    LOSSES,
    Criterion,
    PairwiseScores,
    PointwiseLosses,
    gumbel_noise,
    select_independently,
    select_jointly,
)
from tests.selection import literal
from tests.selection.models import learner_and_reference


# By criterion: the weights of the learner's and the reference's loss, and the metric that is plotted.
WEIGHTS = {
    "learnability": ({"learner": 1, "reference": -1}, "learnability"),
    "easy_reference": ({"reference": -1}, "reference_loss"),
    "hard_learner": ({"learner": 1}, "learner_loss"),
}


def test_every_criterion_has_a_row():
    assert WEIGHTS.keys() == CRITERIA.keys()
    assert all(criterion.name == name for name, criterion in CRITERIA.items())


@pytest.mark.parametrize("name", CRITERIA)
def test_own_is_the_weighted_sum(name):
    criterion, (weights, shown) = CRITERIA[name], WEIGHTS[name]
    assert (criterion.weights, criterion.shown, criterion.joint) == (weights, shown, True)
    losses = {"learner": torch.tensor([3.0, 0.5, 7.0]), "reference": torch.tensor([1.0, 2.0, 7.0])}
    given_losses = {model: losses[model] if model in weights else None for model in losses}
    expected = sum(weight * losses[model] for model, weight in weights.items())
    assert torch.equal(criterion.own(**given_losses), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CRITERIA)
def test_scores_are_the_weighted_sum_of_the_literal_losses(name, loss):
    models = dict(zip(("learner", "reference"), learner_and_reference("clusters", 30), strict=True))
    losses = [(weight, literal.LOSSES[loss](models[model])) for model, weight in WEIGHTS[name][0].items()]
    scores = PairwiseScores.from_embeddings(**models, criterion=name, loss=loss)
    diagonal = sum(weight * part.positive() for weight, part in losses)
    torch.testing.assert_close(scores.diagonal().double(), diagonal, rtol=0, atol=1e-4)
    noise = gumbel_noise(0, 0, 3, 30)
    assert select_jointly(scores, 12, 3, noise=noise).tolist() == literal.select_jointly(losses, 12, 3, noise)


def test_a_criterion_without_weights_is_refused():
    with pytest.raises(ValueError, match="criterion 'nothing' has no weights; give learner or reference a weight"):
        Criterion("nothing")
    assert Criterion("one", learner=2).title == "one"


@dataclass(frozen=True)
class Larger(Criterion):
    """The larger of the two losses: no weighted sum."""

    def own(self, learner: Tensor | None, reference: Tensor | None) -> Tensor:
        return torch.maximum(learner, reference)


LARGER = Larger("larger", learner=1, reference=1, joint=False)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 40), loss=st.sampled_from(LOSSES), seed=st.integers(0, 99), share=st.floats(0.1, 1))
def test_a_criterion_that_is_no_weighted_sum_scores_each_example_by_itself(n, loss, seed, share):
    learner, reference = learner_and_reference("clusters", n, seed)
    own = [PairwiseScores.from_embeddings(learner, None, "hard_learner", loss).diagonal(),
           -PairwiseScores.from_embeddings(None, reference, "easy_reference", loss).diagonal()]  # fmt: skip
    scores = PairwiseScores.from_embeddings(learner, reference, LARGER, loss)
    assert torch.equal(scores.diagonal(), torch.maximum(*own))
    running = scores.start()
    running.add(scores.take(torch.arange(n)))
    assert torch.equal(running.total(), torch.zeros(n, dtype=torch.float64))  # no scores of pairs
    noise, size = gumbel_noise(seed, 1, 1, n), max(1, int(share * n))
    drawn = select_independently(torch.maximum(*own), size, noise[0])
    assert torch.equal(select_jointly(scores, size, 1, noise=noise), drawn)


def test_a_criterion_gets_none_for_a_model_that_does_not_score():
    seen = []

    @dataclass(frozen=True)
    class Squared(Criterion):
        def own(self, learner: Tensor | None, reference: Tensor | None) -> Tensor:
            seen.append(reference)
            return learner**2

    losses = PointwiseLosses(torch.tensor([1.0, -3.0]))
    scores = PairwiseScores.from_embeddings(losses, losses, Squared("squared", learner=1, joint=False), loss=None)
    assert scores.diagonal().tolist() == [1, 9] and seen == [None]
    with pytest.raises(ValueError, match="criterion 'larger' needs the reference's embeddings: pass reference="):
        PairwiseScores.from_embeddings(losses, None, LARGER, loss=None)
