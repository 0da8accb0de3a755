# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of single rows, computed by the code that scores a super-batch in training.

The contrastive loss of a pair depends on the other pairs of its batch. In one draw, a row is scored in a batch with
`batch_size - 1` other rows, which are drawn at random from the readable rows of the whole data set: its own pair's
term plus its conditional term given the others, as joint selection scores it (for the softmax loss, the other pairs
alone are in the normaliser). Several draws are averaged. All rows of a draw meet the same others, which makes rows
comparable and the scores independent of shards and processes; a row that is itself one of the others meets a second
set. The loss of a labelled row does not depend on others, and needs no draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jest_hf.batch import PointwiseLosses, Scored
from jest_hf.data.captions import draw_caption
from jest_hf.selection import Criterion, PairwiseScores


CHUNK = 8192  # rows whose embeddings are in memory at a time, besides those of a batch
LOSS = Criterion("loss", learner=1)


@dataclass(frozen=True)
class RowLosses:
    """Computes the losses of rows under several models.

    Args:
        sources (`Mapping`): What the models computed of the data, by model (`"learner"`, `"reference"`): a
            [`~jest_hf.reference.CachedReference`] or an [`~jest_hf.reference.losses.IrreducibleLosses`] each.
        readable (`torch.Tensor`): The rows that every model could read, int64 `[R]`, ascending.
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`, for pairs.
        batch_size (`int`): Pairs in a random batch. A batch is one row and `batch_size - 1` others.
        seed (`int`): Seed of the others and, for rows with several captions, of the caption of each draw.
        device (`torch.device`): Device of the computation.

    Raises:
        ValueError: if the data are pairs, and there are too few readable rows for a batch.
    """

    sources: Mapping[str, Any]
    readable: Tensor
    loss: str | None
    batch_size: int
    seed: int
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        needed = 2 * (self.batch_size - 1)
        if self.loss is not None and len(self.readable) < needed:
            raise ValueError(
                f"batch_size={self.batch_size} needs two sets of {self.batch_size - 1} other rows, and the data set "
                f"has {len(self.readable)} rows that can be read; lower batch_size to at most "
                f"{len(self.readable) // 2 + 1}."
            )

    def of(self, rows: Tensor, draws: Sequence[int]) -> dict[str, Tensor]:
        """Return the mean losses over the draws, by model, float64 `[n]` each; NaN for a row that a model could not
        read.

        Args:
            rows (`torch.Tensor`): Numbers of rows, int64 `[n]`, on the CPU.
            draws (sequence of `int`): Numbers of the draws, from 0. Pointwise losses need no more than one.
        """
        totals = {name: torch.zeros(len(rows), dtype=torch.float64) for name in self.sources}
        for draw in draws:
            others = [] if self.loss is None else self._others(draw)
            embedded = [{name: self._score(name, part, draw) for name in self.sources} for part in others]
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                twice = torch.isin(chunk, others[0]) if others else torch.zeros(len(chunk), dtype=torch.bool)
                for name in self.sources:
                    losses = self._losses(name, chunk, draw, embedded[0][name] if embedded else None)
                    if twice.any():
                        losses[twice] = self._losses(name, chunk[twice], draw, embedded[1][name])
                    totals[name][start : start + CHUNK] += losses
        means = {name: total / len(draws) for name, total in totals.items()}
        for name, source in self.sources.items():
            means[name][~source.readable(_batch(rows, torch.ones(len(rows), dtype=torch.bool)))] = torch.nan
        return means

    def _others(self, draw: int) -> list[Tensor]:
        """Return the two disjoint sets of others of a draw, each in ascending order, int64 `[batch_size - 1]`."""
        size = self.batch_size - 1
        generator = np.random.default_rng([self.seed % 2**64, draw, size])
        places = torch.from_numpy(generator.choice(len(self.readable), 2 * size, replace=False))
        return [self.readable[part.sort().values] for part in (places[:size], places[size:])]

    def _losses(self, name: str, rows: Tensor, draw: int, others: Scored | None) -> Tensor:
        scores = PairwiseScores.from_embeddings(self._score(name, rows, draw), criterion=LOSS, loss=self.loss)
        losses = scores.diagonal().double()
        if others is not None:
            drawn = PairwiseScores.from_embeddings(others, criterion=LOSS, loss=self.loss)
            running = scores.start()
            running.add(drawn.take(torch.arange(len(drawn), device=others.device)))
            losses = losses + running.total()
        return losses.cpu()

    def _score(self, name: str, rows: Tensor, draw: int) -> Scored:
        """Return what a model computed of rows, on the device. Rows that it could not read have zeros."""
        source = self.sources[name]
        batch = _batch(rows, source.readable(_batch(rows, torch.ones(len(rows), dtype=torch.bool))))
        counts = source.caption_counts(rows)
        if counts is not None:
            # The caption that training draws in the epoch with the number of the draw.
            numbers = [
                draw_caption(count, self.seed, draw, row) if count > 1 else 0
                for count, row in zip(counts.tolist(), rows.tolist(), strict=True)
            ]
            batch["caption_number"] = torch.tensor(numbers, dtype=torch.int64)
        scored: Scored = source.score(nn.Identity(), batch, len(rows)).to(self.device)
        if isinstance(scored, PointwiseLosses) != (self.loss is None):
            raise ValueError(
                f"the {name} computed {type(scored).__name__}, which do not fit loss={self.loss!r}; score with "
                "models of one kind."
            )
        return scored


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's rank correlation of two lists of numbers, `[n]`; equal values share their mean rank.

    Example:

    ```python
    >>> import numpy as np
    >>> from jest_hf.curation.pairwise import rank_correlation
    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5

    ```
    """
    one, other = _ranks(first), _ranks(second)
    one, other = one - one.mean(), other - other.mean()
    scale = np.sqrt((one * one).sum() * (other * other).sum())
    return float((one * other).sum() / scale) if scale else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[inverse])


def _batch(rows: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Return what a [`~jest_hf.reference.ReferenceSource`] without a model reads of a super-batch."""
    return {"example_id": rows, "valid": valid}


__all__ = ["RowLosses", "rank_correlation"]
