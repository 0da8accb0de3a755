# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The input of a selector and its output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from jest_hf.batch import Scores
from jest_hf.distributed import Ranks, Shares
from jest_hf.selection.joint import Chunk


class DrawKey(NamedTuple):
    """Seed and step, on which the noise of a draw depends, besides the positions of the candidates.

    Attributes:
        seed (`int`): Seed of the run.
        step (`int`): Number of the step, from 1.
    """

    seed: int
    step: int


@dataclass(frozen=True)
class Pool:
    """The candidates of one step, as one rank sees them.

    Args:
        rows (`dict`): This rank's n rows of the super-batch. `valid`, bool `[n]`, marks the rows that can be selected;
            `example_id`, int64 `[n]`, names them.
        positions (`torch.Tensor`): Positions of these rows in the super-batch of all ranks, int64 `[n]`. The noise of
            a row depends on its position, and not on the rank that holds the row.
        shares ([`~jest_hf.distributed.Shares`]): How the super-batch is spread over the ranks that select together.
        size (`int`): Number of examples to select, over all ranks that select together (b).
        super_batch_ids (`torch.Tensor`, *optional*): Ids of this rank's rows of the super-batch, int64, where `rows`
            are only those that were selected before decoding. Default: `rows` are all of them.
        n_scored (`int`, *optional*): Rows of this rank that are scored, where only chosen rows were loaded. Default:
            all rows of the super-batch.
        unreadable (`int`, *optional*, defaults to 0): Rows of the super-batch that are not in `rows` since they could
            not be read.
    """

    rows: dict[str, Tensor]
    positions: Tensor
    shares: Shares
    size: int
    super_batch_ids: Tensor | None = None
    unreadable: int = 0
    n_scored: int | None = None

    @property
    def seen_ids(self) -> Tensor:
        """Ids of this rank's rows of the super-batch, loaded or not, int64."""
        return self.rows["example_id"] if self.super_batch_ids is None else self.super_batch_ids

    @property
    def ranks(self) -> Ranks:
        """The ranks that select together."""
        return self.shares.ranks


@dataclass(frozen=True)
class Selection:
    """A sub-batch, the same on every rank that selects together.

    Args:
        indices (`torch.Tensor`): Positions in the super-batch of the ranks that select together, int64 `[b]`, in order
            of drawing.
        chunks (tuple of [`Chunk`], *optional*): The chunks in which the sub-batch was drawn.
        metrics (`dict`, *optional*): Figures about the draw to log, by name.
    """

    indices: Tensor
    chunks: tuple[Chunk, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, chunks: Iterable[Chunk], metrics: Mapping[str, float] | None = None) -> Selection:
        """Return the selection that consists of these chunks."""
        chunks = tuple(chunks)
        return cls(torch.cat([chunk.indices for chunk in chunks]), chunks, metrics or {})


# `ask(("learner", "reference"))` returns the scores of this rank's rows under these models. Each model scores the rows
# at most once per step, however often a selector calls `ask`.
Ask = Callable[[tuple[str, ...]], Scores]


__all__ = ["Ask", "DrawKey", "Pool", "Selection"]
