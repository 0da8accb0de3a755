# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

import pytest
import torch

from jest_hf.distributed import Ranks, ask_first_rank, gather, gather_objects, gather_to_cpu
from tests.distributed.processes import run


def _gather(counts: list[int]) -> tuple[Any, torch.Tensor]:
    ranks = Ranks.world()
    gather.ROWS_AT_A_TIME = 2 * ranks.size  # two rows of each rank
    rows = torch.arange(3 * counts[ranks.rank]).reshape(-1, 3) + 100 * ranks.rank
    return gather_objects(ranks, {"rank": ranks.rank, "words": ["x"] * ranks.rank}), gather_to_cpu(ranks, rows)


@pytest.mark.parametrize("counts", [[5, 5], [0, 7, 2], [0, 0]])
def test_objects_and_rows_of_any_number(counts: list[int]) -> None:
    expected = torch.cat([torch.arange(3 * count).reshape(-1, 3) + 100 * rank for rank, count in enumerate(counts)])
    for objects, rows in run(len(counts), _gather, counts):
        assert objects == [{"rank": rank, "words": ["x"] * rank} for rank in range(len(counts))]
        assert torch.equal(rows, expected)


def _ask(fails: bool) -> Any:
    ranks = Ranks.world()

    def question() -> int:
        if fails:
            raise OSError(f"said by {ranks.rank}")
        return ranks.rank + 7

    try:
        return ask_first_rank(ranks, question)
    except (OSError, RuntimeError) as error:
        return type(error).__name__, str(error)


def test_one_rank_answers_for_all_and_fails_for_all() -> None:
    assert run(3, _ask, False) == [7, 7, 7]
    assert run(3, _ask, True) == [("OSError", "said by 0"), *[("RuntimeError", "rank 0 failed: said by 0")] * 2]
    assert _ask(False) == 7 and _ask(True) == ("OSError", "said by 0")


def test_alone_both_give_back_what_they_got() -> None:
    rows = torch.ones(2, 3)
    assert gather_objects(Ranks(), ("alone", None)) == [("alone", None)]
    assert gather_to_cpu(Ranks(), rows) is rows
