# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Exchange of texts between ranks: the images of one rank against the texts of all ranks.

Rank r computes the logits of its own images (rows) against every text (columns), so each of the `b * b` pairs belongs
to exactly one rank. A rank receives the texts in blocks. What its images add to a text (a gradient, a normaliser) is
sent back to the rank that owns the text. There are two ways, with equal values:

- [`Gathered`]: all texts at once, in one block. Two large messages; every rank holds `[b, D]`.
- [`Ring`]: the texts of one rank at a time, in W blocks. Each block visits all ranks together with what they have
added
  to it, and ends at its owner. W small messages, and no rank ever holds more than one share.

A tensor with one row per text has three forms: *own* (`[b_r, ...]`, this rank's texts), *spread* (the form that the
exchange keeps between sweeps) and *block*. With one rank all three are the same tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jest_hf.distributed import Ranks


class Gathered:
    """All texts in one block.

    Args:
        ranks ([`Ranks`]): The processes that share the batch.
        counts (sequence of `int`): Number of pairs of every rank, b_r.

    Attributes:
        width (`int`): Number of texts in the largest block.
    """

    def __init__(self, ranks: Ranks, counts: Sequence[int]) -> None:
        self.ranks = ranks
        self.counts = counts
        self.width = sum(counts)

    def spread(self, own: Tensor) -> Tensor:
        """Bring a tensor from *own* to *spread* form. A collective."""
        return self.ranks.gather_rows(own, self.counts)

    def blocks(self, read: list[Tensor], written: list[Tensor]) -> Iterator[tuple[Any, ...]]:
        """Yield the blocks one after the other. A collective.

        Args:
            read (list of `torch.Tensor`): Spread tensors, not changed.
            written (list of `torch.Tensor`): Spread tensors; the caller changes each block in place.

        Yields:
            The column of the positive of this rank's first image, and the block of every tensor. The positives of the
            further images are in the next columns. For a block of another rank the column is the number of columns, so
            that there is no positive.
        """
        yield sum(self.counts[: self.ranks.rank]), *read, *written

    def collect(self, spread: Tensor, combine: Callable[..., Tensor] = torch.sum) -> Tensor:
        """Bring a tensor from *spread* to *own* form after all blocks. A collective.

        `combine(values, dim=0)` reduces what the ranks have written, `[W, b_r, ...]`.
        """
        own, size = self.counts[self.ranks.rank], self.ranks.size
        return combine(torch.unflatten(self.ranks.route(spread, self.counts, [own] * size), 0, (size, own)), dim=0)


class Ring:
    """The texts of one rank at a time; methods and attributes are those of [`Gathered`]."""

    def __init__(self, ranks: Ranks, counts: Sequence[int]) -> None:
        self.ranks = ranks
        self.counts = counts
        self.width = max(counts)

    def spread(self, own: Tensor) -> Tensor:
        # Messages must have one shape on all ranks, so smaller shares are padded; `blocks` cuts the padding off.
        return F.pad(own, [0, 0] * (own.ndim - 1) + [0, self.width - len(own)])

    def blocks(self, read: list[Tensor], written: list[Tensor]) -> Iterator[tuple[Any, ...]]:
        rank, size = self.ranks.rank, self.ranks.size
        for step in range(size):
            owner = (rank - step) % size
            n = self.counts[owner]
            yield 0 if owner == rank else n, *(column[:n] for column in [*read, *written])
            if step < size - 1:
                read = [self.ranks.rotate(column) for column in read]
            # In place, and once more than `read`, so that the caller's tensors end up with this rank's texts.
            for column in written:
                column.copy_(self.ranks.rotate(column))

    def collect(self, spread: Tensor, combine: Callable[..., Tensor] = torch.sum) -> Tensor:
        # Nothing to combine: each rank has added to the values of the previous ranks.
        return spread[: self.counts[self.ranks.rank]]


EXCHANGES: dict[str, type[Gathered | Ring]] = {"gather": Gathered, "ring": Ring}


__all__ = ["EXCHANGES", "Gathered", "Ring"]
