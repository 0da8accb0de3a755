# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The selection of a step against a literal version, for every way to select and with a uniform part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jest_hf.distributed import Ranks, Shares
from jest_hf.selection import (
    CRITERIA,
    SELECTIONS,
    PairwiseScores,
    PointwiseLosses,
    chunk_sizes,
    draw_chunks,
    draw_sub_batch,
    gumbel_noise,
    select_jointly,
    take_sub_batch,
)
from jest_hf.selection.sub_batch import take_drawn
from tests.selection import literal
from tests.selection.models import learner_and_reference


SEED, STEP = 5, 9
UNIFORM_CHUNK = 2**32
UNIFORM_SELECTION_CHUNK = 2**32 + 1


def draw(embeddings, n, **arguments):
    settings = {
        "eligible": torch.ones(n, dtype=torch.bool), "example_ids": torch.arange(n), "size": n // 3, "n_chunks": 4,
        "criterion": "learnability", "loss": "sigmoid", "gain": 1.0, "seed": SEED, "step": STEP, "start": 0,
        "total": n, "ranks": Ranks(), **arguments,
    }  # fmt: skip
    return draw_sub_batch(embeddings, **settings)


def indices_of(chunks):
    return torch.cat([chunk.indices for chunk in chunks]).tolist()


def highest(keys, size, without=()):
    keys = keys.tolist()
    return sorted(set(range(len(keys))) - set(without), key=lambda i: (-keys[i], i))[:size]


def literal_draw(selection, losses, n, size, n_chunks, gain, uniform_size, barred=()):
    """Draw the uniform part by its noise, then the rest by the selection; a uniform selection has noise of its own."""
    chunk = UNIFORM_SELECTION_CHUNK if selection == "uniform" else UNIFORM_CHUNK
    uniform_noise = gumbel_noise(SEED, STEP, 1, n, first_chunk=chunk)[0]
    uniform = highest(uniform_noise, size if selection == "uniform" else uniform_size, barred)
    if len(uniform) == size:
        return uniform
    d = sum(sign * loss.positive() for sign, loss in losses)
    noise = gumbel_noise(SEED, STEP, n_chunks, n)
    if selection == "joint":
        noise[:, list(barred)] = -torch.inf
        return literal.select_jointly(losses, size - len(uniform), n_chunks, noise, gain, tuple(uniform))
    keys = gain * d + noise[0] if selection == "independent" else d
    return uniform + highest(keys, size - len(uniform), {*uniform, *barred})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_every_selection_is_the_literal_one(data):
    n = data.draw(st.integers(1, 60), label="B")
    barred = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1), label="barred")
    size = data.draw(st.integers(1, n - len(barred)), label="b")
    uniform_size = data.draw(st.one_of(st.just(0), st.integers(0, size)), label="uniform")
    selection = data.draw(st.sampled_from(list(SELECTIONS)))
    criterion = data.draw(st.sampled_from(tuple(CRITERIA)))
    loss = data.draw(st.sampled_from(["sigmoid", "softmax", "similarity"]))
    n_chunks = data.draw(st.integers(1, 9), label="N")
    gain = data.draw(st.sampled_from([1.0, 0.3]))

    learner, reference = learner_and_reference("clusters", n)
    losses = literal.signed_losses(learner, reference, criterion, loss)
    eligible = torch.tensor([i not in barred for i in range(n)])
    chunks = draw(
        {"learner": learner, "reference": reference}, n, selection=selection, criterion=criterion, loss=loss,
        size=size, n_chunks=n_chunks, gain=gain, uniform_size=uniform_size, eligible=eligible,
    )  # fmt: skip
    assert indices_of(chunks) == literal_draw(selection, losses, n, size, n_chunks, gain, uniform_size, barred)


def test_without_a_uniform_part_the_noise_is_that_of_the_chunks():
    learner, reference = learner_and_reference("clusters", 90)
    scores = PairwiseScores.from_embeddings(learner, reference)
    noise = gumbel_noise(SEED, STEP, 4, 90)
    embeddings = {"learner": learner, "reference": reference}
    assert indices_of(draw(embeddings, 90)) == select_jointly(scores, 30, 4, noise=noise).tolist()
    independent = draw(embeddings, 90, selection="independent")
    assert indices_of(independent) == indices_of(draw(embeddings, 90, n_chunks=1))
    assert len(independent) == 1


@pytest.mark.parametrize("n_chunks", [1, 5])
def test_the_rest_of_a_joint_draw_is_algorithm_1_given_the_uniform_part(n_chunks):
    learner, reference = learner_and_reference("near_duplicates", 120)
    losses = literal.signed_losses(learner, reference, "learnability", "sigmoid")
    noise = gumbel_noise(0, 0, n_chunks + 1, 120)
    scores = PairwiseScores.from_embeddings(learner, reference)
    chunks = list(draw_chunks(scores, 40, n_chunks, noise=noise, uniform_size=15))
    assert [len(chunk.indices) for chunk in chunks] == [15, *chunk_sizes(25, n_chunks)]
    uniform, *rest = (chunk.indices for chunk in chunks)
    assert uniform.tolist() == highest(noise[-1], 15)
    given_those = literal.select_jointly(losses, 25, n_chunks, noise, given=tuple(uniform.tolist()))
    assert torch.cat([uniform, *rest]).tolist() == given_those
    ignoring_those = literal.select_jointly(losses, 25, n_chunks, noise)
    assert torch.cat(rest).tolist() != ignoring_those
    assert chunks[0].effective_sample_size == pytest.approx(120)


@pytest.mark.parametrize("selection", ["joint", "uniform"])
def test_the_uniform_part_is_uniform_whatever_the_scores(selection):
    n, size, uniform_size, trials = 12, 5, 3, 1500
    losses = {"learner": PointwiseLosses(torch.linspace(-8, 8, n))}
    firsts, pairs = torch.zeros(n), torch.zeros(n, n)
    for step in range(trials):
        chunks = draw(
            losses, n, criterion="hard_learner", selection=selection, size=size, step=step, uniform_size=uniform_size
        )
        one, other, _ = chunks[0].indices[:uniform_size].tolist()
        firsts[one] += 1
        pairs[one, other] += 1
    assert stats.chisquare(firsts).pvalue > 0.01
    different = ~torch.eye(n, dtype=torch.bool)
    assert pairs[~different].sum() == 0
    assert stats.chisquare(pairs[different]).pvalue > 0.01


def test_a_uniform_selection_needs_no_scores():
    embeddings = dict(zip(("learner", "reference"), learner_and_reference("random", 60), strict=True))
    of_nothing = indices_of(draw({}, 60, selection="uniform", criterion=None))
    assert of_nothing == indices_of(draw(embeddings, 60, selection="uniform"))


def test_a_uniform_part_is_the_same_of_every_selection():
    embeddings = dict(zip(("learner", "reference"), learner_and_reference("random", 60), strict=True))
    whole = indices_of(draw(embeddings, 60, uniform_size=20))
    for selection in set(SELECTIONS) - {"uniform"}:
        assert indices_of(draw(embeddings, 60, selection=selection, uniform_size=7))[:7] == whole[:7]
        assert indices_of(draw(embeddings, 60, selection=selection, uniform_size=20)) == whole


@pytest.mark.parametrize("uniform", [{"selection": "uniform"}, {"uniform_size": 100}], ids=["selection", "part"])
def test_what_is_uniform_has_noise_of_its_own(uniform):
    """With equal scores the noise alone decides. Two parts of a step must not have the same noise, nor a selection and
    its uniform control."""
    same = {"learner": PointwiseLosses(torch.zeros(400))}
    part = indices_of(draw(same, 400, criterion="hard_learner", uniform_size=100, size=100))
    assert 10 < len(set(part) & set(indices_of(draw({}, 400, selection="uniform", size=100)))) < 40
    uniform = set(indices_of(draw(same, 400, criterion="hard_learner", size=100, **uniform)))
    drawn = indices_of(draw(same, 400, criterion="hard_learner", size=400, n_chunks=4))
    for chunk in range(4):  # a quarter in common by chance
        assert 10 < len(uniform & set(drawn[100 * chunk : 100 * (chunk + 1)])) < 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"selection": "jointly"}, "selection must be one of joint, independent, top_k, uniform, got 'jointly'"),
        ({"uniform_size": 11}, "uniform_size must be at least 0 and at most size=10, got 11"),
        ({"uniform_size": -1}, "uniform_size must be at least 0"),
        ({"selection": "uniform", "size": 31}, "number of eligible examples, 30, got 31"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw({"learner": PointwiseLosses(torch.zeros(30))}, 30, **{"criterion": "hard_learner", **arguments})


@pytest.mark.parametrize("selection", ["joint", "independent", "top_k"])
def test_broken_scores_are_found_though_the_uniform_part_could_hide_them(selection):
    losses = torch.zeros(30)
    losses[[4, 17]] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(FloatingPointError, match=r"2 of 30 examples .* ids \[104, 117\]"):
        draw(
            {"learner": PointwiseLosses(losses)}, 30, criterion="hard_learner", selection=selection, size=30,
            uniform_size=30, example_ids=torch.arange(100, 130),
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"2 of 30 candidates .* \(positions 4, 17\)"):
        select_jointly(PairwiseScores.from_pointwise(losses), 30, uniform_size=30)


def test_what_is_known_of_single_examples_is_taken_with_them():
    losses = PointwiseLosses(torch.arange(10) / 8)
    super_batch = {"example_id": torch.arange(100, 110), "valid": torch.arange(10) != 1}
    shares = Shares.of(Ranks(), super_batch["valid"])
    taken, parts = take_sub_batch(shares, super_batch, {"learner": losses}, torch.tensor([7, 0, 3]))
    assert taken.batch.keys() == super_batch.keys()
    assert taken.batch["example_id"].tolist() == [107, 100, 103]
    assert parts["selected"]["learner"].losses.tolist() == [7 / 8, 0, 3 / 8]
    assert parts["rejected"]["learner"].losses.tolist() == [2 / 8, 4 / 8, 5 / 8]
    taken, parts = take_sub_batch(shares, super_batch, {}, torch.tensor([7, 0, 3]))
    assert taken.batch["example_id"].tolist() == [107, 100, 103] and parts["selected"] == {}


def test_rows_that_are_all_taken_are_not_copied_and_others_come_in_order_of_drawing():
    rows, order = {"example_id": torch.tensor([7, 8, 9])}, torch.tensor([2, 0, 1])
    whole = take_drawn(rows, Shares(Ranks(), [3], [3]), order, torch.ones(3, dtype=torch.bool))
    assert whole.batch is rows and torch.equal(whole.order, order)
    part = take_drawn(rows, Shares(Ranks(), [3], [2]), order, torch.tensor([True, False, True]))
    assert part.batch["example_id"].tolist() == [9, 7] and part.order.tolist() == [1, 2]
