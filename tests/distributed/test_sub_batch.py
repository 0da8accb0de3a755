# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The selection of a step over ranks is that of one process: draw, rows, and scores of rejected examples."""

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
from jest_hf.selection import SELECTIONS, DrawKey, PointwiseLosses, Pool, Scores, Selector, take_sub_batch
from tests.distributed.processes import run
from tests.report.test_compare import NAMES, draw_of, losses, pairs


MAKERS: dict[str, Callable[[int], dict]] = {"pairs": pairs, "losses": losses}


class Case(NamedTuple):
    """A super-batch, the shares of the ranks, and the settings of the selection."""

    kind: str
    selection: str
    shares: tuple[int, ...]
    size: int
    uniform_size: int
    loss: str


def make_cases(world_size: int) -> list[Case]:
    """Yield every selection, for embeddings and for losses; shares, sizes and the loss are random."""
    rng, cases = random.Random(world_size), []
    for kind, selection, uniform in product(MAKERS, SELECTIONS, (False, True)):
        shares = tuple(rng.choice([0, 1, 17, 40, 60]) for _ in range(world_size - 1)) + (20,)
        size = rng.randint(world_size, sum(shares) // 2)
        uniform_size = rng.randint(1, size) if uniform else 0
        cases.append(Case(kind, selection, shares, size, uniform_size, rng.choice(["sigmoid", "softmax"])))
    return cases


def select_take_and_compare(cases: list[Case]) -> list[tuple[list[int], list[int], dict[str, float]]]:
    """Return for each case the drawn positions, the ids of this rank's rows, and all figures."""
    ranks, results = Ranks.world(), []
    for case in cases:
        total = sum(case.shares)
        start, n = (sum(case.shares[: ranks.rank]), case.shares[ranks.rank]) if ranks.size > 1 else (0, total)
        rows = torch.arange(start, start + n)
        embeddings = {name: scored.take(rows) for name, scored in MAKERS[case.kind](total).items()}
        super_batch = {"example_id": rows + 1000, "valid": rows % 5 != 4}
        shares = Shares.of(ranks, super_batch["valid"])
        scored_by = "similarity" if case.size % 2 else case.loss
        draw = draw_of(
            embeddings, super_batch["valid"], start, total, ranks,
            size=case.size, uniform_size=case.uniform_size, loss=scored_by,
        )  # fmt: skip
        chunks = draw(selection=case.selection, criterion="learnability")
        indices = torch.cat([chunk.indices for chunk in chunks])
        taken, parts = take_sub_batch(shares, super_batch, embeddings, indices)
        for name, scored in parts["selected"].items():
            whole = MAKERS[case.kind](total)[name].take(taken.batch["example_id"] - 1000)
            for column, values in scored.columns().items():
                assert torch.equal(values, whole.columns()[column])
        metrics = compare_selected({"selected": parts["selected"]}, case.loss, ranks)
        settings = {"loss": scored_by, "n_chunks": 4, "uniform_fraction": case.uniform_size / case.size}
        selectors = [Selector.parse(name, **settings) for name in NAMES[::2]]
        pool, scores, sources = Pool(super_batch, rows, shares, case.size), Scores.of(embeddings), rows % 3
        metrics |= compare_selectors(
            selectors, pool, scores, DrawKey(0, 3), indices, case.loss, sources, ["a", "b", "c"]
        )
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


def raise_errors(calls: list[str]) -> list[str]:
    """Return the errors of faulty calls, and check that the next call works."""
    ranks, messages = Ranks.world(), []
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
        messages.append(str(error.value))
    assert len(draw(torch.zeros(30))[0].indices) == 24
    return messages


ERRORS = {
    "broken": r"1 of 90 examples are NaN or infinite \(rank 1; example ids \[33\]\)",
    "broken and uniform": r"1 of 90 examples are NaN or infinite \(rank 1; example ids \[33\]\)",
    "too many uniform": r"rank 0, 1, 2: uniform_size must be at least 0 and at most size=24, got 25",
    "uniform sizes": r"must be the same on all ranks, .* in \[2, 2, 2\] chunks, of which the first have \[7, 8, 7\]",
    "too many": r"number of eligible examples, 90, got 91",
}


def test_what_is_wrong_on_one_rank_is_raised_on_all() -> None:
    raised = run(3, raise_errors, list(ERRORS))
    assert raised[0] == raised[1] == raised[2]
    for message, pattern in zip(raised[0], ERRORS.values(), strict=True):
        assert re.search(pattern, message), message


def test_positions_belong_to_the_rank_whose_share_they_lie_in() -> None:
    rows = [3, 0, 2, 0, 1]
    literally = [rank for rank, n in enumerate(rows) for _ in range(n)]
    assert owners_of(torch.arange(6), rows).tolist() == literally == [0, 0, 0, 2, 2, 4]


def test_places_are_positions_within_a_share_or_behind_its_end() -> None:
    ranks = Ranks()
    ranks.rank, ranks.size = 1, 3
    shares = Shares(ranks, [3, 4, 2], [3, 4, 2])
    assert shares.places(torch.arange(9)).tolist() == [4, 4, 4, 0, 1, 2, 3, 4, 4]
    assert shares.own(torch.arange(9)).tolist() == [0, 1, 2, 3]
