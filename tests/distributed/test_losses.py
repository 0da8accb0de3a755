# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Losses over real processes against the dense loss of one process on the whole batch."""

from __future__ import annotations

from itertools import accumulate, product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jest_hf.distributed import Ranks
from jest_hf.losses import LOSSES
from tests.distributed.processes import run
from tests.losses.memory import LargestTensor


STEPS = 5
KINDS = sorted(LOSSES)
# Pairs of every rank. Equal and unequal shares, the smallest first, last and in between.
SHARES = [[7], [4, 4], [3, 5, 2], [1, 4, 2, 5]]
# How one loss can be computed: exchange and tile size (which divides few of the shares, or is larger than all).
WAYS = list(product(["gather", "ring"], [2, None]))
LOSSES_AND_BIAS = [("sigmoid", True), ("sigmoid", False), ("softmax", True)]
# Relative and absolute: float32 values of a scale of 10, summed in another order.
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-4, 2e-6)}


class Towers(nn.Module):
    """Two linear towers and a temperature."""

    def __init__(self, dtype: torch.dtype, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(6, 8, dtype=dtype)
        self.text = nn.Linear(5, 8, dtype=dtype)
        self.logit_scale = nn.Parameter(torch.tensor([2.3], dtype=dtype))
        self.logit_bias = nn.Parameter(torch.tensor([-3.0], dtype=dtype)) if bias else None

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        bias = None if self.logit_bias is None else self.logit_bias + 0
        return F.normalize(self.image(image)), F.normalize(self.text(text)), self.logit_scale.exp(), bias


def _batch(n: int, step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    image, text = (torch.randn(n, width, generator=generator, dtype=torch.float64) for width in (6, 5))
    return image.to(dtype), text.to(dtype)


def _own(shares: list[int], rank: int) -> slice:
    ends = [0, *accumulate(shares)]
    return slice(ends[rank], ends[rank + 1])


def _train(model: nn.Module, kind: str, n: int, dtype: torch.dtype, rows: slice, **options: object) -> list[Tensor]:
    """All losses, the gradients of the first step and the weights after the last."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses, gradients = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = LOSSES[kind](*model(*(x[rows] for x in _batch(n, step, dtype))), **options)
        loss.backward()
        losses.append(loss.detach())
        gradients = gradients or [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return [*losses, *gradients, *(p.detach() for p in model.parameters())]


def _train_all(shares: list[int]) -> dict[tuple, list[Tensor]]:
    ranks = Ranks.world()
    rows, results = _own(shares, ranks.rank), {}
    for case in product(LOSSES_AND_BIAS, TOLERANCE, WAYS):
        (kind, bias), dtype, (exchange, tile_size) = case
        model = DistributedDataParallel(Towers(dtype, bias))
        options = {"tile_size": tile_size, "ranks": ranks, "exchange": exchange}
        results[case] = _train(model, kind, sum(shares), dtype, rows, **options)
    return results


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_losses_gradients_and_weights_are_those_of_one_process(shares: list[int]) -> None:
    n, of_ranks = sum(shares), run(len(shares), _train_all, shares)
    for (kind, bias), dtype in product(LOSSES_AND_BIAS, TOLERANCE):
        expected = _train(Towers(dtype, bias), kind, n, dtype, slice(None))
        rtol, atol = TOLERANCE[dtype]
        for way in WAYS:
            first, *others = (results[(kind, bias), dtype, way] for results in of_ranks)
            torch.testing.assert_close(first, expected, rtol=rtol, atol=atol)
            for other in others:  # to the bit
                assert all(x.equal(y) for x, y in zip(other, first, strict=True))


def _embeddings(n: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
    return F.normalize(image).to(dtype), F.normalize(text + image).to(dtype)


def _loss_and_gradients(kind: str, image: Tensor, text: Tensor, scale: float, **options: object) -> list[Tensor]:
    inputs = [torch.as_tensor(x).detach().clone().requires_grad_() for x in (image, text, scale, -10.0)]
    loss = LOSSES[kind](*inputs, **options)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def _low_precision(shares: list[int]) -> dict[tuple, tuple]:
    ranks, results = Ranks.world(), {}
    image, text = (x[_own(shares, ranks.rank)] for x in _embeddings(sum(shares), 16, torch.bfloat16))
    for kind, (exchange, tile_size) in product(KINDS, WAYS):
        options = {"tile_size": tile_size, "ranks": ranks, "exchange": exchange}
        low = _loss_and_gradients(kind, image, text, 100.0, **options)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = _loss_and_gradients(kind, image, text, 100.0, **options)
        with torch.no_grad():
            value = LOSSES[kind](image, text, 100.0, -10.0, **options)
        results[kind, exchange, tile_size] = low, autocast, value
    return results


def test_bfloat16_embeddings_are_computed_with_in_float32_also_under_autocast() -> None:
    shares = [6, 9, 8]
    image, text = _embeddings(sum(shares), 16, torch.bfloat16)
    exact = {kind: _loss_and_gradients(kind, image.double(), text.double(), 100.0) for kind in KINDS}
    of_ranks = run(3, _low_precision, shares)
    for rank, results in enumerate(of_ranks):
        rows = _own(shares, rank)
        for (kind, *_), (low, autocast, value) in results.items():
            assert [x.dtype for x in low[:4]] == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32]
            assert all(x.equal(y) for x, y in zip(low, autocast, strict=True))
            assert value.equal(low[0])
            torch.testing.assert_close(low[0].double(), exact[kind][0], rtol=1e-5, atol=1e-5)
            for gradient, whole in zip(low[1:3], exact[kind][1:3], strict=True):
                torch.testing.assert_close(gradient.double(), 3 * whole[rows], rtol=2**-7, atol=1e-4)


def _largest_tensors(n: int, dim: int) -> dict[tuple[str, str], int]:
    ranks, results = Ranks.world(), {}
    rows = _own([n // ranks.size] * ranks.size, ranks.rank)
    image, text = (x[rows].clone().requires_grad_() for x in _embeddings(n, dim, torch.float32))
    for kind, exchange in product(KINDS, ["gather", "ring"]):
        with LargestTensor() as largest:
            LOSSES[kind](image, text, 10.0, -10.0, tile_size=2, ranks=ranks, exchange=exchange).backward()
        results[kind, exchange] = largest.numel
    return results


def test_ring_holds_no_more_than_a_share() -> None:
    n, dim = 64, 12
    for results in run(4, _largest_tensors, n, dim):
        for kind in KINDS:
            assert results[kind, "ring"] == n // 4 * dim
            assert results[kind, "gather"] == n * dim  # the instrument does see the whole batch


def _traffic_of_a_ring(n: int, width: int) -> dict[str, int]:
    ranks = Ranks.world()
    own, bytes_received = F.normalize(torch.randn(n, width)), {}
    for kind in KINDS:
        before = ranks.bytes_received
        LOSSES[kind](own, own, 10.0, -10.0, ranks=ranks, exchange="ring")
        bytes_received[kind] = ranks.bytes_received - before
    return bytes_received


def test_a_ring_sends_the_texts_to_every_other_rank_and_no_further():
    n, width, size = 64, 32, 3
    once = (size - 1) * n * width * 4
    for of_rank in run(size, _traffic_of_a_ring, n, width):
        assert all(once <= received < 1.1 * once for received in of_rank.values()), "counts and sums besides"
