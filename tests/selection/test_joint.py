# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Joint selection draws the same examples as Algorithm 1 written out with whole matrices."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jest_hf.selection import (
    CRITERIA,
    LOSSES,
    PairwiseScores,
    chunk_sizes,
    draw_chunks,
    gumbel_noise,
    select_independently,
    select_jointly,
)
from tests.selection import literal
from tests.selection.models import learner_and_reference


def assert_draws_the_same(learner, reference, criterion, loss, size, n_chunks, gain=1.0):
    noise = gumbel_noise(3, size, n_chunks, len(learner))
    scores = PairwiseScores.from_embeddings(learner, reference, criterion, loss)
    expected = literal.select_jointly(
        literal.signed_losses(learner, reference, criterion, loss), size, n_chunks, noise, gain
    )
    indices = select_jointly(scores, size, n_chunks, gain, noise)
    assert indices.dtype == torch.int64
    assert indices.tolist() == expected


@pytest.mark.parametrize("kind", ["random", "clusters", "near_duplicates", "extreme"])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("loss", LOSSES)
def test_same_noise_same_indices(kind, criterion, loss):
    learner, reference = learner_and_reference(kind, 301)
    assert_draws_the_same(learner, reference, criterion, loss, size=67, n_chunks=8)


@pytest.mark.parametrize("kind", ["random", "extreme"])
@pytest.mark.parametrize("loss", LOSSES)
def test_same_noise_same_indices_in_a_large_super_batch(kind, loss):
    """Two tiles of rows; and the same order down to the last of all candidates.

    Chunks stay below a hundred examples: among many hundreds some keys are closer than float32 logits can tell apart.
    """
    learner, reference = learner_and_reference(kind, 2048)
    assert_draws_the_same(learner, reference, "learnability", loss, size=411, n_chunks=16)
    assert_draws_the_same(learner, reference, "learnability", loss, size=2048, n_chunks=32)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("size", "n_chunks"), [(1, 1), (1, 16), (5, 16), (16, 16), (31, 16), (97, 3), (97, 1), (97, 97), (97, 120)]
)
def test_sizes_that_do_not_divide(loss, size, n_chunks):
    learner, reference = learner_and_reference("clusters", 97)
    assert_draws_the_same(learner, reference, "learnability", loss, size, n_chunks)


def test_more_drawn_at_once_than_a_tile_has_columns(monkeypatch):
    monkeypatch.setattr("jest_hf.selection.pair_terms._TILE_COLUMNS", 7)
    monkeypatch.setattr("jest_hf.selection.pair_terms._TILE_ROWS_CPU", 10)
    learner, reference = learner_and_reference("clusters", 97)
    for loss in LOSSES:
        assert_draws_the_same(learner, reference, "learnability", loss, 50, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_accumulation_does_not_depend_on_the_embeddings_dtype(dtype, loss):
    learner, reference = learner_and_reference("clusters", 200, dtype=dtype)
    assert_draws_the_same(learner, reference, "learnability", loss, 60, 6)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_and_gradients_do_not_reach_the_selection(loss):
    learner, reference = learner_and_reference("clusters", 200)
    learner.image.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_draws_the_same(learner, reference, "learnability", loss, 60, 6)


@pytest.mark.parametrize("gain", [0.1, 3.0])
def test_gain(gain):
    learner, reference = learner_and_reference("random", 120)
    assert_draws_the_same(learner, reference, "learnability", "sigmoid", 50, 5, gain)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_matrix_scores_of_any_size(data):
    n = data.draw(st.integers(1, 40), label="B")
    size = data.draw(st.integers(1, n), label="b")
    n_chunks = data.draw(st.integers(1, 20), label="N")
    spread = data.draw(st.sampled_from([0.0, 1.0, 1e4]), label="spread")
    matrix = spread * torch.randn(n, n, generator=torch.Generator().manual_seed(n))
    noise = gumbel_noise(1, size, n_chunks, n)
    indices = select_jointly(PairwiseScores.from_matrix(matrix), size, n_chunks, noise=noise).tolist()
    assert indices == literal.select_jointly([(1, literal.Matrix(matrix))], size, n_chunks, noise)
    assert len(set(indices)) == size


def test_large_matrix_scores():
    matrix = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    noise = gumbel_noise(0, 0, 16, 2048)
    expected = literal.select_jointly([(1, literal.Matrix(matrix))], 411, 16, noise)
    assert select_jointly(PairwiseScores.from_matrix(matrix), 411, noise=noise).tolist() == expected


def test_a_sigmoid_score_matrix_selects_what_its_embeddings_select():
    learner, reference = learner_and_reference("clusters", 150)
    losses = literal.signed_losses(learner, reference, "learnability", "sigmoid")
    matrix = sum(sign * loss.pairs for sign, loss in losses)
    noise = gumbel_noise(0, 0, 7, 150)
    from_matrix = select_jointly(PairwiseScores.from_matrix(matrix), 40, 7, noise=noise)
    from_embeddings = select_jointly(PairwiseScores.from_embeddings(learner, reference), 40, 7, noise=noise)
    assert torch.equal(from_matrix, from_embeddings)


def ordered_draw_probability(weights: list[float], order: tuple[int, ...]) -> float:
    """Probability of drawing `order` one after the other without replacement."""
    probability, left = 1.0, sum(weights)
    for index in order:
        probability *= weights[index] / left
        left -= weights[index]
    return probability


def test_first_two_chunks_follow_the_stated_distribution():
    matrix = torch.randn(5, 5, generator=torch.Generator().manual_seed(1)) * 0.6
    scores, s, trials = PairwiseScores.from_matrix(matrix), matrix.tolist(), 6000
    noise = gumbel_noise(0, 0, 2 * trials, 5).view(trials, 2, 5)
    draws = [tuple(select_jointly(scores, 3, n_chunks=2, noise=noise[trial]).tolist()) for trial in range(trials)]

    first = {order: ordered_draw_probability([math.exp(s[i][i]) for i in range(5)], order) for order in orders(5, 2)}
    both = {}
    for i, j, k in orders(5, 3):
        weights = [math.exp(s[c][c] + s[i][c] + s[j][c] + s[c][i] + s[c][j]) for c in range(5)]
        weights[i] = weights[j] = 0.0
        both[i, j, k] = first[i, j] * ordered_draw_probability(weights, (k,))

    for exact, drawn in ((first, [draw[:2] for draw in draws]), (both, draws)):
        assert math.isclose(sum(exact.values()), 1.0)
        observed = [drawn.count(order) for order in exact]
        assert stats.chisquare(observed, [trials * p for p in exact.values()]).pvalue > 0.01


def orders(n: int, k: int):
    return itertools.permutations(range(n), k)


def test_one_chunk_is_independent_selection_by_the_diagonal():
    learner, reference = learner_and_reference("clusters", 100)
    scores = PairwiseScores.from_embeddings(learner, reference)
    noise = gumbel_noise(0, 0, 1, 100)
    expected = select_independently(scores.diagonal(), 30, noise=noise[0])
    assert torch.equal(select_jointly(scores, 30, n_chunks=1, noise=noise), expected)


def test_ties_go_to_the_lowest_position():
    scores = PairwiseScores.from_matrix(torch.zeros(5000, 5000))
    assert select_jointly(scores, 1000, n_chunks=7, noise=torch.zeros(7, 5000)).tolist() == list(range(1000))


def test_fresh_noise_comes_from_the_default_generator():
    scores = PairwiseScores.from_matrix(torch.zeros(500, 500))
    torch.manual_seed(0)
    once, again = select_jointly(scores, 50), select_jointly(scores, 50)
    torch.manual_seed(0)
    assert torch.equal(select_jointly(scores, 50), once)
    assert not torch.equal(once, again)


@pytest.mark.parametrize("loss", LOSSES)
def test_ineligible_examples_are_never_drawn_and_do_not_count(loss):
    """Broken rows may hold NaN; the other rows are drawn as from a super-batch without them."""
    learner, reference = learner_and_reference("clusters", 100)
    eligible = torch.ones(100, dtype=torch.bool)
    eligible[[0, 17, 18, 99]] = False
    kept = eligible.nonzero().flatten()
    noise = gumbel_noise(0, 0, 5, 100)
    expected = select_jointly(
        PairwiseScores.from_embeddings(learner.take(kept), reference.take(kept), loss=loss),
        40, 5, noise=noise[:, kept],
    )  # fmt: skip
    learner.image[~eligible] = torch.nan
    reference.text[~eligible] = torch.inf
    scores = PairwiseScores.from_embeddings(learner, reference, loss=loss)
    before = eligible.clone()
    assert torch.equal(select_jointly(scores, 40, 5, noise=noise, eligible=eligible), kept[expected])
    assert torch.equal(eligible, before)
    everyone = select_jointly(scores, len(kept), 5, noise=noise, eligible=eligible)
    assert torch.equal(everyone.sort().values, kept)


def test_effective_sample_size_is_that_of_the_candidates_left():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    scores = PairwiseScores.from_matrix(torch.diag(weights.log()))
    chunks = list(draw_chunks(scores, 3, n_chunks=2, noise=gumbel_noise(0, 0, 2, 5)))
    left = torch.ones(5, dtype=torch.bool)
    for chunk in chunks:
        expected = weights[left].sum() ** 2 / (weights[left] ** 2).sum()
        assert chunk.effective_sample_size == pytest.approx(float(expected), rel=1e-6)
        left[chunk.indices] = False
    uniform = next(draw_chunks(PairwiseScores.from_matrix(torch.zeros(50, 50)), 10))
    assert uniform.effective_sample_size == pytest.approx(50)
    greedy = next(draw_chunks(PairwiseScores.from_matrix(torch.diag(torch.arange(50) * 1e3)), 10))
    assert greedy.effective_sample_size == pytest.approx(1)


def test_gain_enters_the_effective_sample_size_and_noise_does_not():
    matrix = torch.diag(torch.tensor([0.0, 1.0, 2.0]))
    chunks = [
        next(draw_chunks(PairwiseScores.from_matrix(matrix), 1, 1, gain=2.0, noise=gumbel_noise(seed, 0, 1, 3)))
        for seed in range(2)
    ]
    weights = torch.tensor([0.0, 2.0, 4.0]).exp()
    for chunk in chunks:
        expected = float(weights.sum() ** 2 / (weights**2).sum())
        assert chunk.effective_sample_size == pytest.approx(expected, rel=1e-6)


@given(size=st.integers(1, 10**7), n_chunks=st.integers(1, 200))
def test_chunk_sizes(size, n_chunks):
    sizes = chunk_sizes(size, n_chunks)
    assert sum(sizes) == size
    assert len(sizes) == min(size, n_chunks)
    assert sizes[0] - sizes[-1] <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 1


SCORES = PairwiseScores.from_matrix(torch.zeros(10, 10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 11}, "number of eligible examples, 10, got 11"),
        ({"size": 3, "eligible": torch.arange(10) < 2}, "number of eligible examples, 2, got 3"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"size": -1}, "size must be at least 1, got -1"),
        ({"size": 3, "n_chunks": 0}, "n_chunks must be at least 1, got 0"),
        ({"size": 3, "noise": torch.zeros(16, 9)}, r"noise must have shape \[16, 10\], got \[16, 9\]"),
        ({"size": 3, "n_chunks": 4, "noise": torch.zeros(16, 10)}, r"noise must have shape \[4, 10\]"),
        ({"size": 3, "noise": torch.full((16, 10), torch.nan)}, "noise must be finite"),
        ({"size": 3, "gain": 0.0}, "gain must be a positive finite number, got 0.0"),
        ({"size": 3, "gain": -1.0}, "gain must be a positive finite number"),
        ({"size": 3, "gain": math.inf}, "gain must be a positive finite number"),
        ({"size": 3, "gain": math.nan}, "gain must be a positive finite number"),
        ({"size": 3, "eligible": torch.ones(10)}, "eligible must be a bool tensor"),
        ({"size": 3, "eligible": torch.ones(9, dtype=torch.bool)}, r"of shape \[10\]"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_jointly(SCORES, **arguments)


def test_broken_scores_are_counted_and_located():
    matrix = torch.zeros(30, 30)
    matrix[4, 4], matrix[20, 20] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"2 of 30 candidates .* \(positions 4, 20\)"):
        select_jointly(PairwiseScores.from_matrix(matrix), 5)
    matrix.fill_diagonal_(torch.nan)
    with pytest.raises(ValueError, match=r"30 of 30 .* \(positions 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\)"):
        select_jointly(PairwiseScores.from_matrix(matrix), 5)


def test_scores_that_break_after_the_first_chunk_are_found():
    matrix = torch.zeros(10, 10)
    matrix[:, 7] = torch.nan
    matrix[7, 7] = -100.0
    with pytest.raises(ValueError, match=r"1 of \d candidates .* \(positions 7\)"):
        select_jointly(PairwiseScores.from_matrix(matrix), 4, n_chunks=2)
