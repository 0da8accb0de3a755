# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How a super-batch lies over the ranks: each holds a run of its positions, in the order of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jest_hf.distributed.ranks import Ranks


class Shares(NamedTuple):
    """
    The shares of a super-batch, as every rank knows them.

    Attributes:
        ranks ([`Ranks`]): Who holds them.
        rows (`list[int]`): Examples that each rank holds.
        readable (`list[int]`): Examples among them that can be trained on.
    """

    ranks: Ranks
    rows: list[int]
    readable: list[int]

    @classmethod
    def of(cls, ranks: Ranks, valid: Tensor) -> Shares:
        """The shares, from this rank's mark of readable examples, bool `[n]`. A collective."""
        rows, readable = ranks.gather(torch.stack([valid.new_tensor(len(valid), dtype=torch.int64), valid.sum()])).T
        return cls(ranks, rows.tolist(), readable.tolist())

    @property
    def start(self) -> int:
        """First position of this rank's share."""
        return sum(self.rows[: self.ranks.rank])

    def positions(self, chosen: Tensor) -> Tensor:
        """Positions in the super-batch of what each rank chose of its own share, bool `[n]`; int64, on every rank."""
        return self.ranks.gather_rows(chosen.nonzero().flatten() + self.start)

    def own(self, positions: Tensor) -> Tensor:
        """Those of these positions that lie in this rank's share, counted from its start; int64."""
        local = positions - self.start
        return local[(local >= 0) & (local < self.rows[self.ranks.rank])]


def owners_of(positions: Tensor, rows: Sequence[int]) -> Tensor:
    """The rank that holds each of these positions of a super-batch, int64, where each holds so many rows of it."""
    ends = torch.tensor(rows, device=positions.device).cumsum(0)
    return torch.searchsorted(ends, positions, right=True)


__all__ = ["Shares", "owners_of"]
