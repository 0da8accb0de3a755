# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The selection of a step over ranks is that of one process: what is drawn, taken, and compared with it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch

from jest_hf.distributed import Ranks, Shares, owners_of
from jest_hf.report import compare_selected, compare_selectors
from jest_hf.selection import SELECTIONS, PointwiseLosses, Selector, take_sub_batch
from tests.distributed.processes import run
from tests.report.test_compare import NAMES, draw_of, losses, pairs


MAKERS: dict[str, Callable[[int], dict]] = {"pairs": pairs, "losses": losses}


class Case(NamedTuple):
    """A super-batch, how it is shared out, and how to select from it."""

    kind: str
    selection: str
    shares: tuple[int, ...]
    size: int
    uniform_size: int
    loss: str


def make_cases(world_size: int) -> list[Case]:
    """Every selection of either kind; shares, sizes and the loss at random."""
    rng, cases = random.Random(world_size), []
    for kind, selection, uniform in product(MAKERS, SELECTIONS, (False, True)):
        shares = tuple(rng.choice([0, 1, 17, 40, 60]) for _ in range(world_size - 1)) + (20,)
        size = rng.randint(world_size, sum(shares) // 2)
        uniform_size = rng.randint(1, size) if uniform else 0
        cases.append(Case(kind, selection, shares, size, uniform_size, rng.choice(["sigmoid", "softmax"])))
    return cases


def select_take_and_compare(cases: list[Case]) -> list[tuple[list[int], list[int], dict[str, float]]]:
    """Of each case: positions drawn, ids of the rows that this rank then holds, and all figures."""
    ranks, results = Ranks.world(), []
    for case in cases:
        total = sum(case.shares)
        start, n = (sum(case.shares[: ranks.rank]), case.shares[ranks.rank]) if ranks.size > 1 else (0, total)
        rows = torch.arange(start, start + n)
        embeddings = {name: scored.take(rows) for name, scored in MAKERS[case.kind](total).items()}
        super_batch = {"example_id": rows + 1000, "valid": rows % 5 != 4}
        shares = Shares.of(ranks, super_batch["valid"])
        draw = draw_of(
            embeddings, super_batch["valid"], start, total, ranks,
            size=case.size, uniform_size=case.uniform_size, loss="similarity" if case.size % 2 else case.loss,
        )  # fmt: skip
        chunks = draw(selection=case.selection, criterion="learnability")
        indices = torch.cat([chunk.indices for chunk in chunks])
        taken, parts = take_sub_batch(shares, super_batch, embeddings, indices)
        for name, scored in parts["selected"].items():
            whole = MAKERS[case.kind](total)[name].take(taken.batch["example_id"] - 1000)
            for column, values in scored.columns().items():
                assert torch.equal(values, whole.columns()[column])
        metrics = compare_selected({"selected": parts["selected"]}, case.loss, ranks)
        selectors = [Selector.parse(name) for name in NAMES[::2]]
        sources = rows % 3
        metrics |= compare_selectors(selectors, draw, shares, embeddings, indices, case.loss, sources, ["a", "b", "c"])
        results.append((indices.tolist(), taken.batch["example_id"].tolist(), metrics))
    return results


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_ranks_selects_what_one_does(world_size: int) -> None:
    cases = make_cases(world_size)
    alone = select_take_and_compare(cases)
    of_ranks = run(world_size, select_take_and_compare, cases)
    for i, (case, (indices, ids, metrics)) in enumerate(zip(cases, alone, strict=True)):
        assert len(indices) == case.size and ids == [1000 + index for index in indices]
        for here in of_ranks:
            assert here[i][0] == indices, case
            assert here[i][2] == of_ranks[0][i][2]  # to the bit
            assert here[i][2] == pytest.approx(metrics, rel=1e-4, abs=1e-5), case
        assert sorted(id_ for here in of_ranks for id_ in here[i][1]) == sorted(ids)


def complain(calls: list[str]) -> list[str]:
    ranks, words = Ranks.world(), []
    second = ranks.rank == 1
    start = 30 * ranks.rank
    valid = torch.ones(30, dtype=torch.bool)

    def draw(values: torch.Tensor, selection: str = "independent", **changed: Any) -> list:
        embeddings = {"learner": PointwiseLosses(values)}
        draw = draw_of(embeddings, valid, start, 90, ranks, **changed)
        return draw(selection=selection, criterion="hard_learner")

    broken = torch.zeros(30) / (torch.arange(30) != 3 if second else 1)
    faulty = {
        "broken": lambda: draw(broken),
        "broken and uniform": lambda: draw(broken, size=90, uniform_size=90),
        "too many uniform": lambda: draw(torch.zeros(30), uniform_size=25),
        "uniform sizes": lambda: draw(torch.zeros(30), uniform_size=7 + second),
        "too many": lambda: draw(torch.zeros(30), "uniform", size=91),
    }
    for call in calls:
        with pytest.raises((ValueError, FloatingPointError)) as error:
            faulty[call]()
        words.append(str(error.value))
    assert len(draw(torch.zeros(30))[0].indices) == 24
    return words


COMPLAINTS = {
    "broken": r"1 of 90 examples are NaN or infinite \(rank 1; example ids \[33\]\)",
    "broken and uniform": r"1 of 90 examples are NaN or infinite \(rank 1; example ids \[33\]\)",
    "too many uniform": r"rank 0, 1, 2: uniform_size must be at least 0 and at most size=24, got 25",
    "uniform sizes": r"must be the same on all ranks, .* in \[2, 2, 2\] chunks, of which the first have \[7, 8, 7\]",
    "too many": r"number of eligible examples, 90, got 91",
}


def test_what_is_wrong_on_one_rank_is_raised_on_all() -> None:
    heard = run(3, complain, list(COMPLAINTS))
    assert heard[0] == heard[1] == heard[2]
    for words, pattern in zip(heard[0], COMPLAINTS.values(), strict=True):
        assert re.search(pattern, words), words


def test_positions_belong_to_the_rank_whose_share_they_lie_in() -> None:
    rows = [3, 0, 2, 0, 1]
    literally = [rank for rank, n in enumerate(rows) for _ in range(n)]
    assert owners_of(torch.arange(6), rows).tolist() == literally == [0, 0, 0, 2, 2, 4]
