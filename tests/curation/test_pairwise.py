# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The losses of single rows against literal ones, and against the scores of a super-batch in a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from jest_hf.curation.pairwise import RowLosses, rank_correlation
from jest_hf.data.captions import draw_caption
from jest_hf.reference import CachedReference
from jest_hf.selection import PairwiseScores
from tests.helpers import random_rows
from tests.reference.caching import make_cache, reference_model


N = 23


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    rows = random_rows(N)
    rows[4]["image"] = None
    rows[6]["text"] = ["a red star", "a blue circle", "a green square"]
    folder = tmp_path_factory.mktemp("caches")
    return {
        name: CachedReference(make_cache(folder / name, rows, model=reference_model(seed)))
        for seed, name in enumerate(("learner", "reference"))
    }


def row_losses(caches, loss="sigmoid", batch_size=8, seed=0):
    readable = torch.tensor([row for row in range(N) if row != 4])
    return RowLosses(caches, readable, loss, batch_size, seed)


def literal(cache, loss, row, others, caption=0):
    """The loss of one pair in a batch with others, entry by entry."""
    image, text = (cache.take(torch.tensor([one]), torch.tensor([caption])) for one in (row, row))
    rest = cache.take(others, torch.zeros(len(others), dtype=torch.int64))
    scale, bias = image.logit_scale, image.logit_bias
    own = scale * (image.image @ text.text.T).item() + bias
    as_image = scale * (image.image @ rest.text.T)[0] + bias
    as_text = scale * (rest.image @ text.text.T)[:, 0] + bias
    if loss == "sigmoid":
        return (F.softplus(torch.tensor(-own)) + F.softplus(as_image).sum() + F.softplus(as_text).sum()).item()
    return (-own + 0.5 * (as_image.logsumexp(0) + as_text.logsumexp(0))).item()


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_losses_are_literal_ones_in_a_random_batch(caches, loss):
    losses = row_losses(caches, loss)
    first, second = losses._others(3)
    found = losses.of(torch.arange(N), [3])
    both = set(first.tolist()) | set(second.tolist())
    assert len(first) == len(second) == 7 and len(both) == 14 and not both & {4, 6}
    for name, source in caches.items():
        for row in range(N):
            if row in (4, 6):
                continue  # broken, or with a drawn caption
            others = second if row in first else first
            assert found[name][row].item() == pytest.approx(literal(source.cache, loss, row, others), rel=1e-5)


def test_learnability_is_that_of_a_step(caches):
    """The candidates' own terms and conditional terms given the others, with both models in one score."""
    losses = row_losses(caches)
    others = losses._others(3)[0]
    rows = torch.tensor([row for row in range(N) if row not in (4, 6) and row not in others])
    taken = {name: source.cache.take(rows) for name, source in caches.items()}
    scores = PairwiseScores.from_embeddings(**taken, criterion="learnability")
    drawn = {name: source.cache.take(others) for name, source in caches.items()}
    running = scores.start()
    running.add(PairwiseScores.from_embeddings(**drawn, criterion="learnability").take(torch.arange(len(others))))
    expected = scores.diagonal() + running.total()
    found = losses.of(rows, [3])
    torch.testing.assert_close(found["learner"] - found["reference"], expected.double(), rtol=1e-5, atol=1e-5)


def test_draws_are_averaged_and_broken_rows_are_nan(caches):
    losses = row_losses(caches)
    single = [losses.of(torch.arange(N), [draw])["learner"] for draw in (0, 1)]
    both = losses.of(torch.arange(N), [0, 1])["learner"]
    assert both.isnan().nonzero().flatten().tolist() == [4]
    torch.testing.assert_close(both, (single[0] + single[1]) / 2, equal_nan=True)
    assert not torch.allclose(single[0].nan_to_num(), single[1].nan_to_num())


def test_a_row_with_several_captions_is_scored_with_the_caption_of_the_epoch(caches):
    losses = row_losses(caches)
    draws = [draw for draw in range(20) if 6 not in torch.cat(losses._others(draw))]
    captions = [draw_caption(3, 0, draw, 6) for draw in draws]
    assert len(set(captions)) == 3
    for draw, caption in zip(draws, captions, strict=True):
        found = losses.of(torch.tensor([6]), [draw])["learner"].item()
        expected = literal(caches["learner"].cache, "sigmoid", 6, losses._others(draw)[0], caption)
        assert found == pytest.approx(expected, rel=1e-5)


def test_chunks_change_nothing(caches, monkeypatch):
    whole = row_losses(caches).of(torch.arange(N), [0, 1])
    monkeypatch.setattr("jest_hf.curation.pairwise.CHUNK", 5)
    parts = row_losses(caches).of(torch.arange(N), [0, 1])
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], equal_nan=True)


def test_the_seed_draws_the_others(caches):
    one, same, other = (row_losses(caches, seed=seed).of(torch.arange(N), [0])["learner"] for seed in (0, 0, 1))
    assert torch.equal(one.nan_to_num(), same.nan_to_num()) and not torch.equal(one.nan_to_num(), other.nan_to_num())


def test_too_few_rows_for_a_batch_are_refused(caches):
    assert row_losses(caches, batch_size=12)
    with pytest.raises(ValueError, match="batch_size=13 needs two sets of 12 .* lower batch_size to at most 12"):
        row_losses(caches, batch_size=13)


def test_rank_correlation_is_spearmans():
    generator = np.random.default_rng(0)
    one = generator.integers(0, 6, 40).astype(float)  # with ties
    other = one + generator.normal(size=40)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
