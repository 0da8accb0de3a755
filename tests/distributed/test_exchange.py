# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The balanced exchange: every selected row arrives once, bit-equal, and only the surplus moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jest_hf.distributed import Ranks, exchange, plan_exchange
from tests.distributed.processes import run


def literal_plan(owners: list[int], world_size: int) -> list[int]:
    """Plan one example at a time, as in the docstring."""
    room = [len(owners) // world_size + (rank < len(owners) % world_size) for rank in range(world_size)]
    plan: list[int | None] = []
    for owner in owners:
        plan.append(owner if room[owner] else None)
        room[owner] -= bool(room[owner])
    for place, destination in enumerate(plan):
        if destination is None:
            plan[place] = next(rank for rank in range(world_size) if room[rank])
            room[plan[place]] -= 1
    return plan


@given(st.integers(1, 6).flatmap(lambda w: st.tuples(st.just(w), st.lists(st.integers(0, w - 1), max_size=40))))
def test_the_plan_is_the_literal_one(case: tuple[int, list[int]]) -> None:
    world_size, owners = case
    plan = plan_exchange(torch.tensor(owners, dtype=torch.int64), world_size)
    assert plan.dtype == torch.int64
    assert plan.tolist() == literal_plan(owners, world_size)


def whole_super_batch(n: int) -> dict[str, torch.Tensor]:
    """Rows of every kind of dtype, some of them of an odd number of bytes, so that views would be misaligned."""
    generator = torch.Generator().manual_seed(n)
    return {
        "pixel_values": torch.randint(256, (n, 3, 3, 5), dtype=torch.uint8, generator=generator),
        "input_ids": torch.randint(1000, (n, 4), generator=generator),
        "valid": torch.rand(n, generator=generator) < 0.5,
        "example_id": torch.arange(n) + 100,
        "half": torch.randn(n, 3, generator=generator).bfloat16(),
        "weight": torch.randn(n, generator=generator, dtype=torch.float64),
        "nothing": torch.empty(n, 0),
    }


ROW_BYTES = 45 + 32 + 1 + 8 + 6 + 8


def _exchange(counts: list[int], indices: list[int], known: bool) -> dict[str, Any]:
    ranks = Ranks.world()
    start = sum(counts[: ranks.rank])
    batch = whole_super_batch(sum(counts))
    own = {name: value[start : start + counts[ranks.rank]] for name, value in batch.items()}
    if ranks.rank % 2:
        own = dict(reversed(own.items()))  # equal keys in another order are equal keys
    got = exchange(ranks, own, torch.tensor(indices), counts if known else None)
    return {**vars(got), "received": ranks.bytes_received}


def draw(n: int, size: int) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(size))[:size].tolist()


CASES = {
    "all of rank 0": ([6, 6], [5, 0, 3, 1]),
    "all of the last rank": ([4, 4, 4], [11, 8, 10, 9]),
    "nothing to move": ([4, 4], [7, 0, 3, 5]),
    "one each, all moved": ([2, 2, 2, 2], [7, 6, 5, 4]),
    "random": ([3, 17, 4], draw(24, 11)),
    "uneven shares, one of them empty": ([9, 0, 3, 5], draw(17, 10)),
    "the whole super-batch": ([5, 2, 1], draw(8, 8)),
}


@pytest.mark.parametrize("counts, indices", CASES.values(), ids=CASES.keys())
def test_every_row_arrives_once_and_only_the_surplus_travels(counts: list[int], indices: list[int]) -> None:
    size = len(counts)
    whole = whole_super_batch(sum(counts))
    owners = [next(r for r in range(size) if index < sum(counts[: r + 1])) for index in indices]
    plan = literal_plan(owners, size)
    surplus = sum(owner != destination for owner, destination in zip(owners, plan, strict=True))
    known = len(indices) % 2 == 0
    results = run(size, _exchange, counts, indices, known)
    for rank, got in enumerate(results):
        places = [place for place, destination in enumerate(plan) if destination == rank]
        assert got["order"].tolist() == places
        assert len(places) == len(indices) // size + (rank < len(indices) % size)
        assert got["batch"].keys() == whole.keys()
        for name, value in got["batch"].items():
            expected = whole[name][[indices[place] for place in places]]
            assert value.dtype == expected.dtype and torch.equal(value, expected), name
        assert (got["moved"], got["bytes_moved"]) == (surplus, surplus * ROW_BYTES)
        arrivals = sum(owners[place] != rank for place in places)
        counts = (size - 1) * 8 * (1 if known else 2)  # hash of the layout and, if not known, the number of rows
        assert got["received"] == counts + arrivals * ROW_BYTES
    assert sorted(place for got in results for place in got["order"].tolist()) == list(range(len(indices)))


def test_alone_it_is_a_plain_take() -> None:
    whole = whole_super_batch(6)
    got = exchange(Ranks(), whole, torch.tensor([4, 0, 5]))
    for name, value in got.batch.items():
        assert torch.equal(value, whole[name][[4, 0, 5]])
    assert (got.order.tolist(), got.moved, got.bytes_moved) == ([0, 1, 2], 0, 0)


def _refused(kind: str) -> str:
    ranks = Ranks.world()
    batch = whole_super_batch(4)
    if kind == "length" and ranks.rank == 1:
        batch["input_ids"] = batch["input_ids"][:, :3]
    if kind == "dtype" and ranks.rank == 0:
        batch["input_ids"] = batch["input_ids"].int()
    if kind == "key" and ranks.rank == 1:
        del batch["valid"]
    try:
        exchange(ranks, batch, torch.tensor([1, 6] if kind != "few" else [1]))
    except ValueError as error:
        # No rank waits for another after an error on all ranks.
        ranks.sum(torch.ones(1))
        return str(error)
    return "not refused"


@pytest.mark.parametrize(
    "kind, message",
    [
        ("few", "1 selected examples are too few for 2 ranks"),
        ("length", "the rows of 'input_ids' are torch.int64 [4] on rank 0 and torch.int64 [3] on rank 1"),
        ("dtype", "the rows of 'input_ids' are torch.int32 [4] on rank 0 and torch.int64 [4] on rank 1"),
        ("key", "the rows of 'valid' are torch.bool [] on rank 0 and absent on rank 1"),
    ],
)
def test_what_cannot_be_exchanged_is_refused_on_all_ranks_alike(kind: str, message: str) -> None:
    said = run(2, _refused, kind)
    assert said[0] == said[1]
    assert message in said[0]
