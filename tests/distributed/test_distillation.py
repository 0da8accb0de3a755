# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation over real processes against the literal loss of one process on the whole batch."""

from __future__ import annotations

from itertools import accumulate, product

import pytest
import torch
from torch import Tensor

from jest_hf.distributed import Ranks
from jest_hf.losses import DISTILLATION
from tests.distributed.processes import run
from tests.losses.test_distillation import embeddings, literal, make_teacher, with_gradients


# Pairs of every rank. Equal and unequal shares, the smallest first, last and in between.
SHARES = [[7], [4, 4], [5, 1], [3, 5, 2]]
WAYS = list(product(sorted(DISTILLATION), ["gather", "ring"], [None, 2]))
SCALE_AND_BIAS = torch.tensor(14.0, dtype=torch.float64), torch.tensor(-4.0, dtype=torch.float64)


def _own_parts(shares: list[int]) -> dict[tuple, list[Tensor]]:
    """Return this rank's loss, and its gradients divided by the number of ranks, as by the average of engines."""
    ranks, results = Ranks.world(), {}
    end = list(accumulate(shares))[ranks.rank]
    rows = torch.arange(end - shares[ranks.rank], end)
    image, text = (x[rows] for x in embeddings(sum(shares), 7, 0))
    teacher = make_teacher(sum(shares)).take(rows)
    for kind, exchange, tile_size in WAYS:
        options = {"teacher": teacher, "ranks": ranks, "exchange": exchange, "tile_size": tile_size}
        value, *gradients = with_gradients(
            lambda *x, kind=kind, options=options: DISTILLATION[kind](*x, **options), image, text, *SCALE_AND_BIAS
        )
        results[kind, exchange, tile_size] = [value, *(gradient / ranks.size for gradient in gradients)]
    return results


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_values_and_gradients_are_those_of_one_process(shares: list[int]) -> None:
    teacher = make_teacher(sum(shares))
    of_ranks = run(len(shares), _own_parts, shares)
    for way in WAYS:
        value, image, text, scale, bias = with_gradients(
            lambda *x, kind=way[0]: literal(kind, *x, teacher), *embeddings(sum(shares), 7, 0), *SCALE_AND_BIAS
        )
        values, images, texts, scales, biases = zip(*(results[way] for results in of_ranks), strict=True)
        assert all(other.equal(values[0]) for other in values)  # to the bit
        torch.testing.assert_close(values[0], value, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(torch.cat(images), image, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(torch.cat(texts), text, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(sum(scales), scale, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(sum(biases), bias, rtol=1e-10, atol=1e-10)
