# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from jest_hf.distributed import Ranks, Shares
from tests.distributed.processes import run


def _own_rows(rank: int, count: int) -> torch.Tensor:
    return torch.arange(3 * count, dtype=torch.uint8).reshape(count, 3) + 100 * rank


def _talk(counts: list[int]) -> dict[str, object]:
    ranks = Ranks.world()
    own = _own_rows(ranks.rank, counts[ranks.rank])
    said = {
        "gather": ranks.gather(torch.tensor([ranks.rank, 7])),
        "counts": ranks.gather_counts(10 + ranks.rank),
        "numbers": ranks.gather_numbers([ranks.rank, 2**40]),
        "rows": ranks.gather_rows(own),
        "rows_known": ranks.gather_rows(own, counts),
        "sum": ranks.sum(torch.tensor([1.5, ranks.rank])),
        "rotated": ranks.rotate(torch.tensor([[ranks.rank]])),
    }
    before = ranks.bytes_received
    # Rank r sends s rows to rank s.
    sent = list(range(ranks.size))
    said["routed"] = ranks.route(torch.full((sum(sent), 2), ranks.rank), sent, [ranks.rank] * ranks.size)
    said["routed_bytes"] = ranks.bytes_received - before
    return said


@pytest.mark.parametrize("counts", [[2, 2], [3, 1], [0, 2, 1, 5]])
def test_every_rank_gets_the_others_words(counts: list[int]) -> None:
    size = len(counts)
    rows = torch.cat([_own_rows(rank, count) for rank, count in enumerate(counts)])
    for rank, said in enumerate(run(size, _talk, counts)):
        assert said["gather"].tolist() == [[other, 7] for other in range(size)]
        assert said["counts"] == [10 + other for other in range(size)]
        assert said["numbers"] == [[other, 2**40] for other in range(size)]
        assert torch.equal(said["rows"], rows) and torch.equal(said["rows_known"], rows)
        assert said["sum"].tolist() == [1.5 * size, sum(range(size))]
        assert said["rotated"].tolist() == [[(rank - 1) % size]]
        assert said["routed"].tolist() == [[other] * 2 for other in range(size) for _ in range(rank)]
        assert said["routed_bytes"] == (size - 1) * rank * 2 * 8


def test_alone_nothing_is_copied_or_sent() -> None:
    ranks = Ranks.world()
    rows = torch.arange(6).reshape(3, 2)
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.gather(rows).data_ptr() == rows.data_ptr()
    for result in (ranks.gather_rows(rows), ranks.sum(rows), ranks.route(rows, [3], [3]), ranks.rotate(rows)):
        assert result is rows
    assert ranks.gather_numbers([3, 4], "no device") == [[3, 4]]
    assert ranks.bytes_received == 0


def test_positions_count_from_the_first_row_of_a_share():
    second = SimpleNamespace(rank=1, gather_rows=lambda rows: rows)
    chosen = torch.tensor([True, False, True, True])
    assert Shares(second, [3, 4], [3, 3]).positions(chosen).tolist() == [3, 5, 6]
