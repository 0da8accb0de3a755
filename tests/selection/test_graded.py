# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The scores of single rows, and the sample of rows that were not selected."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jest_hf.distributed import Ranks, Shares
from jest_hf.selection import (
    ContrastiveEmbeddings,
    DrawKey,
    PointwiseLosses,
    Pool,
    Selector,
    left_over,
    own_scores,
    sample_rejected,
)


def embedded(seed, n=6):
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(n, 4, generator=generator), dim=1) for _ in range(2))
    return ContrastiveEmbeddings(image, text, logit_scale=5.0, logit_bias=-2.0)


def test_the_score_of_a_pair_is_that_of_its_own_losses():
    learner, reference = embedded(0), embedded(1)
    losses = [F.softplus(-(5.0 * (one.image * one.text).sum(1) - 2.0)) for one in (learner, reference)]
    scored = {"learner": learner, "reference": reference}
    learnability = own_scores(Selector.parse("joint/learnability", loss="sigmoid"), scored)
    torch.testing.assert_close(learnability, losses[0] - losses[1])
    easy = own_scores(Selector.parse("independent/easy_reference", loss="sigmoid"), scored)
    torch.testing.assert_close(easy, -losses[1])
    similar = own_scores(Selector.parse("independent/easy_reference", loss="similarity"), scored)
    torch.testing.assert_close(similar, (reference.image * reference.text).sum(1))


def test_there_is_no_score_without_a_criterion_or_its_models():
    scored = {"learner": PointwiseLosses(torch.ones(3))}
    assert own_scores(Selector.parse("uniform"), scored) is None
    assert own_scores(Selector.parse("top_k/learnability"), scored) is None
    assert own_scores(Selector.parse("top_k/hard_learner"), scored).tolist() == [1, 1, 1]


def sample(rest, size, step=1):
    n = len(rest)
    ids, scores = torch.arange(100, 100 + n), torch.arange(n, dtype=torch.float32)
    return sample_rejected(ids, scores, rest, torch.arange(n), DrawKey(0, step), "step", size)


def test_only_rows_that_could_have_been_selected_are_sampled():
    valid = torch.tensor([True, True, False, True, True, True])
    rows = {"valid": valid, "example_id": torch.arange(6)}
    pool = Pool(rows, torch.arange(6), Shares.of(Ranks(), valid), size=2)
    rest = left_over(pool, torch.tensor([4, 0]))
    assert rest.tolist() == [False, True, False, True, False, True]
    assert valid.tolist() == [True, True, False, True, True, True]  # and the pool is as it was
    found = sample(rest, size=5)
    assert sorted(found.ids.tolist()) == [-1, -1, 101, 103, 105]
    known = found.ids >= 0
    assert torch.equal(found.ids[known] - 100, found.rows[known])
    assert torch.equal(found.scores[known], found.rows[known].float())


def test_a_sample_is_a_function_of_its_arguments_and_uniform():
    rest = torch.ones(10, dtype=torch.bool)
    before = torch.get_rng_state()
    counts = torch.zeros(10)
    for step in range(1, 1001):
        found = sample(rest, 3, step)
        assert len(found.ids.unique()) == 3
        counts[found.ids - 100] += 1
    assert torch.equal(sample(rest, 3, 7).ids, sample(rest, 3, 7).ids)
    assert torch.equal(torch.get_rng_state(), before)
    assert counts.numpy() == pytest.approx(300, abs=60)  # four standard deviations
