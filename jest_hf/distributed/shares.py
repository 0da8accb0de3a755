# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How a super-batch is spread over the ranks: each rank holds consecutive positions, in the order of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jest_hf.distributed.ranks import Ranks


class Shares(NamedTuple):
    """The shares of a super-batch, the same on every rank.

    Attributes:
        ranks ([`Ranks`]): The ranks that hold the shares.
        rows (`list[int]`): Number of examples that each rank holds.
        readable (`list[int]`): Number of these examples that can be trained on.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.distributed import Ranks, Shares
    >>> shares = Shares.of(Ranks(), valid=torch.tensor([True, False, True]))
    >>> shares.rows, shares.readable
    ([3], [2])

    ```
    """

    ranks: Ranks
    rows: list[int]
    readable: list[int]

    @classmethod
    def of(cls, ranks: Ranks, valid: Tensor) -> Shares:
        """Return the shares; `valid`, bool `[n]`, marks the readable examples of this rank. A collective."""
        rows, readable = zip(*ranks.gather_numbers([len(valid), int(valid.sum())], valid.device), strict=True)
        return cls(ranks, list(rows), list(readable))

    @property
    def start(self) -> int:
        """The first position of this rank's share."""
        return sum(self.rows[: self.ranks.rank])

    def positions(self, chosen: Tensor) -> Tensor:
        """Return, on every rank, the positions of the rows that all ranks chose, int64. A collective.

        `chosen`, bool `[n]`, marks the rows of this rank's share.
        """
        return self.ranks.gather_rows(chosen.nonzero().flatten() + self.start)

    def own(self, positions: Tensor) -> Tensor:
        """Return those of the positions that lie in this rank's share, counted from the start of the share, int64."""
        local = positions - self.start
        return local[(local >= 0) & (local < self.rows[self.ranks.rank])]

    def places(self, positions: Tensor) -> Tensor:
        """Return the place of each position within this rank's share, int64; for those of other ranks the number of
        this rank's rows. Unlike the result of `own`, the size is that of `positions`: no host waits for it."""
        local = positions - self.start
        n_rows = self.rows[self.ranks.rank]
        return torch.where((local >= 0) & (local < n_rows), local, n_rows)


def owners_of(positions: Tensor, rows: Sequence[int]) -> Tensor:
    """Return the rank that holds each position, int64; `rows` are the numbers of rows that the ranks hold."""
    ends = torch.tensor(rows, device=positions.device).cumsum(0)
    return torch.searchsorted(ends, positions, right=True)


__all__ = ["Shares", "owners_of"]
