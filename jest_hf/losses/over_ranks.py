# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How the images of one rank meet the texts of all ranks.

Rank r computes the logits of its own images (rows) against every text (columns), so each of the `b * b` pairs belongs
to exactly one rank. The texts come to the images in blocks, and what the images add to a text (its gradient, its
normaliser) goes back to the rank that owns it. Two ways, of the same values:

- [`Gathered`]: all texts at once, one block. Two large messages; every rank holds `[b, D]`.
- [`Ring`]: one rank's texts at a time, W blocks. Each goes round the ring and takes what it has collected along, until
  both are home. W small messages, and no rank ever holds more than one share.

A tensor with one row per text has three forms: *own* (`[b_r, ...]`, this rank's texts), *spread* (as the way of
exchange holds it between sweeps) and that of a block. Alone (one rank) the three are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jest_hf.distributed import Ranks


class Gathered:
    """
    All texts in one block.

    Args:
        ranks ([`Ranks`]): The processes that share the batch.
        counts (sequence of `int`): Pairs of every rank, b_r.

    Attributes:
        width (`int`): Texts of the largest block.
    """

    def __init__(self, ranks: Ranks, counts: Sequence[int]) -> None:
        self.ranks = ranks
        self.counts = counts
        self.width = sum(counts)

    def spread(self, own: Tensor) -> Tensor:
        """From *own* to *spread* form."""
        return self.ranks.gather_rows(own, self.counts)

    def blocks(self, read: list[Tensor], written: list[Tensor]) -> Iterator[tuple[Any, ...]]:
        """
        Go over the blocks.

        Args:
            read (list of `torch.Tensor`): Spread tensors, left as they are.
            written (list of `torch.Tensor`): Spread tensors, of which the caller changes each block in place.

        Yields:
            The column of the first own image's positive, those of the further images being next to it (no column at
            all, one beyond the last, where the block is another rank's), and the block of every tensor.
        """
        yield sum(self.counts[: self.ranks.rank]), *read, *written

    def collect(self, spread: Tensor, combine: Callable[..., Tensor] = torch.sum) -> Tensor:
        """From *spread* to *own* form, once all blocks are done: `combine` joins what several ranks have written."""
        own, size = self.counts[self.ranks.rank], self.ranks.size
        return combine(torch.unflatten(self.ranks.route(spread, self.counts, [own] * size), 0, (size, own)), dim=0)


class Ring:
    """As [`Gathered`], one rank's texts at a time."""

    def __init__(self, ranks: Ranks, counts: Sequence[int]) -> None:
        self.ranks = ranks
        self.counts = counts
        self.width = max(counts)

    def spread(self, own: Tensor) -> Tensor:
        # What travels must have one shape on all ranks: rows that no block shows fill up a smaller share.
        return F.pad(own, [0, 0] * (own.ndim - 1) + [0, self.width - len(own)])

    def blocks(self, read: list[Tensor], written: list[Tensor]) -> Iterator[tuple[Any, ...]]:
        rank, size = self.ranks.rank, self.ranks.size
        for step in range(size):
            owner = (rank - step) % size
            n = self.counts[owner]
            yield 0 if owner == rank else n, *(column[:n] for column in [*read, *written])
            if step < size - 1:
                read = [self.ranks.rotate(column) for column in read]
            # In place, and once more than `read`: the caller's tensors end up at home.
            for column in written:
                column.copy_(self.ranks.rotate(column))

    def collect(self, spread: Tensor, combine: Callable[..., Tensor] = torch.sum) -> Tensor:
        # Nothing to combine: each rank has added to what the ranks before it had written.
        return spread[: self.counts[self.ranks.rank]]


EXCHANGES: dict[str, type[Gathered | Ring]] = {"gather": Gathered, "ring": Ring}


__all__ = ["EXCHANGES", "Gathered", "Ring"]
