# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings and pairwise scores: their values, and one clear error for each way to get them wrong."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from jest_hf.selection import CRITERIA, LOSSES, ContrastiveEmbeddings, PairwiseScores
from jest_hf.selection.pair_terms import PAIR_LOSSES
from tests.selection import literal


def embeddings(size: int = 40, width: int = 8, seed: int = 0, scale=20.0, bias=-5.0) -> ContrastiveEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    image, text = F.normalize(torch.randn(2, size, width, generator=generator), dim=2)
    return ContrastiveEmbeddings(image, text, scale, bias)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("loss", LOSSES)
def test_terms_are_those_of_the_matrices(criterion, loss):
    learner, reference = embeddings(), embeddings(width=12, seed=1, scale=7.0, bias=None)
    scores = PairwiseScores.from_embeddings(learner, reference, criterion, loss)
    losses = literal.signed_losses(learner, reference, criterion, loss)
    assert len(scores) == 40
    assert scores.diagonal().dtype == torch.float32
    expected = sum(sign * part.positive() for sign, part in losses)
    torch.testing.assert_close(scores.diagonal().double(), expected, rtol=1e-5, atol=1e-5)

    running = scores.start()
    assert torch.equal(running.total(), torch.zeros(40, dtype=torch.float64))
    drawn = torch.tensor([5, 2, 30])
    left = torch.ones(40, dtype=torch.bool)
    left[drawn] = False
    running.add(scores.take(drawn[:2]))
    running.add(scores.take(drawn[2:]))
    expected = sum(sign * part.conditional(drawn) for sign, part in losses)
    torch.testing.assert_close(running.total()[left], expected[left], rtol=1e-5, atol=1e-5)
    assert torch.equal(scores.start().total(), torch.zeros(40, dtype=torch.float64))


def test_model_that_the_criterion_does_not_need_may_be_missing():
    model = embeddings()
    easy = PairwiseScores.from_embeddings(reference=model, criterion="easy_reference")
    hard = PairwiseScores.from_embeddings(learner=model, criterion="hard_learner")
    assert torch.equal(easy.diagonal(), -hard.diagonal())


def test_softmax_terms_stay_finite_at_extreme_logits():
    model = embeddings(scale=1e4, bias=None)
    scores = PairwiseScores.from_embeddings(model, criterion="hard_learner", loss="softmax")
    running = scores.start()
    running.add(scores.take(torch.arange(10)))
    assert running.total().isfinite().all()


@pytest.mark.parametrize("largest", [-40, -10, 9.9, 10.1, 19.9, 39.9, 79.9, 80.1, 200])
@pytest.mark.parametrize("n_drawn", [1, 2, 7, 8, 77])
def test_sums_of_sigmoid_losses_are_accurate_at_logits_of_any_size(largest, n_drawn):
    generator = torch.Generator().manual_seed(n_drawn)
    for spread in (0.0, 2.0, 100.0):
        logits = largest - spread * torch.rand(n_drawn, 50, generator=generator)
        expected = F.softplus(logits.double()).sum(dim=0)
        # An exponential cannot be better than the rounding of its logit; and float32 ends at 1e-38.
        rtol = 5e-7 + 2.0**-23 * float(logits.abs().max())
        torch.testing.assert_close(
            PAIR_LOSSES["sigmoid"].reduce(logits, math.inf).double(), expected, rtol=rtol, atol=1e-37
        )


def test_a_broken_candidate_breaks_no_other():
    logits = torch.full((9, 4), -3.0)
    logits[2, 1], logits[5, 2] = torch.nan, torch.inf
    reduced = PAIR_LOSSES["sigmoid"].reduce(logits.clone(), math.inf)
    assert reduced.isfinite().tolist() == [True, False, False, True]
    whole = torch.full((9, 4), -3.0)  # a tile without the broken candidates, of embeddings whose bound they break
    unbounded, broken = (PAIR_LOSSES["sigmoid"].reduce(whole.clone(), bound) for bound in (math.inf, math.nan))
    assert torch.equal(unbounded, broken)


def test_matrix_directions():
    """Rows of drawn examples add to the candidates as texts, their columns to the candidates as images."""
    matrix = torch.arange(9.0).view(3, 3)
    scores = PairwiseScores.from_matrix(matrix)
    assert scores.diagonal().tolist() == [0, 4, 8]
    running = scores.start()
    running.add(scores.take(torch.tensor([1])))
    assert running.total().tolist() == [3 + 1, 4 + 4, 5 + 7]


def test_scale_and_bias_may_be_numbers_or_tensors_of_one_element():
    model = embeddings()
    for scale, bias in (
        (torch.tensor(2.0), torch.tensor(-1.0)),
        (torch.tensor([2.0]), torch.tensor([[-1.0]])),
        (2, -1),
    ):
        made = ContrastiveEmbeddings(model.image, model.text, scale, bias)
        assert (made.logit_scale, made.logit_bias) == (2.0, -1.0)
    learned = torch.nn.Parameter(torch.tensor(3.0))
    assert ContrastiveEmbeddings(model.image, model.text, learned).logit_scale == 3.0
    assert ContrastiveEmbeddings(model.image, model.text, 1.0).logit_bias == 0.0


def test_take_and_length():
    model = embeddings()
    taken = model.take(torch.tensor([3, 1]))
    assert len(model) == 40
    assert len(taken) == 2
    assert torch.equal(taken.image, model.image[[3, 1]])
    assert torch.equal(taken.text, model.text[[3, 1]])
    assert (taken.logit_scale, taken.logit_bias) == (20.0, -5.0)
    moved = model.to("meta")
    assert moved.image.device == moved.text.device == torch.device("meta")
    assert (moved.logit_scale, moved.logit_bias) == (20.0, -5.0)


@pytest.mark.parametrize(
    ("image", "text", "scale", "bias", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(3, 2), 1.0, None, r"\[4, 2\] and \[3, 2\]"),
        (torch.zeros(4, 2), torch.zeros(4, 3), 1.0, None, r"\[4, 2\] and \[4, 3\]"),
        (torch.zeros(4), torch.zeros(4), 1.0, None, r"must both be \[B, D\]"),
        (torch.zeros(4, 2), torch.zeros(4, 2).long(), 1.0, None, "floating point, got torch.float32 and torch.int64"),
        (torch.zeros(4, 2), torch.zeros(4, 2, device="meta"), 1.0, None, "one device, got cpu and meta"),
        (torch.zeros(4, 2), torch.zeros(4, 2), torch.ones(2), None, r"logit_scale .* one element, got shape \[2\]"),
        (torch.zeros(4, 2), torch.zeros(4, 2), float("inf"), None, "logit_scale must be finite, got inf"),
        (torch.zeros(4, 2), torch.zeros(4, 2), 1.0, torch.tensor(float("nan")), "logit_bias must be finite, got nan"),
    ],
)
def test_wrong_embeddings(image, text, scale, bias, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveEmbeddings(image, text, scale, bias)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "hardest"}, "criterion must be one of learnability, .* got 'hardest'"),
        ({"loss": "hinge"}, "loss must be one of sigmoid, softmax, similarity, got 'hinge'"),
        ({"learner": None}, "'learnability' needs the learner's embeddings"),
        ({"reference": None}, "'learnability' needs the reference's embeddings"),
        ({"learner": None, "criterion": "hard_learner"}, "'hard_learner' needs the learner's"),
        ({"reference": None, "criterion": "easy_reference"}, "'easy_reference' needs the reference's"),
        ({"reference": embeddings(size=39)}, "the same examples, got 40 and 39"),
        (
            {"reference": ContrastiveEmbeddings(*torch.zeros(2, 40, 8, device="meta"), 1.0)},
            "one device, got cpu and meta",
        ),
    ],
)
def test_wrong_scores(arguments, message):
    with pytest.raises(ValueError, match=message):
        PairwiseScores.from_embeddings(**{"learner": embeddings(), "reference": embeddings(), **arguments})


@pytest.mark.parametrize("shape", [(3, 4), (3,), (3, 3, 3)])
def test_matrix_must_be_square(shape):
    with pytest.raises(ValueError, match=r"must be square, \[B, B\], got"):
        PairwiseScores.from_matrix(torch.zeros(shape))
