# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The scores of single rows, for the ledger: of the rows that a draw took, and of a sample of those that it left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jest_hf.batch import Scored
from jest_hf.selection.noise import noise_at
from jest_hf.selection.pool import DrawKey, Pool
from jest_hf.selection.scores import PairwiseScores
from jest_hf.selection.selectors import Selector


# What decided about a row. "uniform": no score, as during the warm-up. "prefilter": the first of two stages. "loader":
# a draw before decoding. "step": a draw from decoded and scored rows.
STAGES = ("uniform", "prefilter", "loader", "step")
N_REJECTED = 32  # rows of a step, over all ranks, that are sampled of those that were not selected
_CHUNK = 2**32 + 2  # the number of a chunk of noise that no draw uses


@dataclass(frozen=True)
class Graded:
    """Rows that were not selected, and their scores.

    Args:
        ids (`torch.Tensor`): Their ids, int64 `[k]`; -1 where there is no row.
        scores (`torch.Tensor`): Their scores, float32 `[k]`.
        stage (`str`): The stage that did not select them, one of `STAGES`.
        rows (`torch.Tensor`, *optional*): Their places among the rows of this rank, int64 `[k]`; `None` where rows
            are not loaded.
    """

    ids: Tensor
    scores: Tensor
    stage: str
    rows: Tensor | None = None

    def on_host(self) -> Graded:
        """Return the same on the CPU, of rows that are not loaded."""
        return Graded(self.ids.cpu(), self.scores.cpu(), self.stage)


def own_scores(selector: Selector, scored: Mapping[str, Scored]) -> Tensor | None:
    """Return the score of each row by itself (for pairs, of its own pair), float32 `[n]`.

    Args:
        selector ([`Selector`]): Its criterion and its loss make the scores.
        scored (mapping): What the models computed of n rows, by `"learner"` and `"reference"`.

    Returns:
        `torch.Tensor`, or `None` for a selector without a criterion, or if one of its models did not score.
    """
    if selector.criterion is None or any(model not in scored for model in selector.models()):
        return None
    used = {model: scored.get(model) if model in selector.models() else None for model in ("learner", "reference")}
    return PairwiseScores.from_embeddings(
        used["learner"], used["reference"], criterion=selector.criterion, loss=selector.loss
    ).diagonal()


def left_over(pool: Pool, indices: Tensor) -> Tensor:
    """Mark the rows of this rank that could be selected and were not, bool `[n]`. No host waits.

    Args:
        pool ([`Pool`]): The candidates.
        indices (`torch.Tensor`): The selection, int64 `[b]`, positions in the super-batch.
    """
    valid = pool.rows["valid"]
    rest = torch.cat([valid, valid.new_zeros(1)]).index_fill_(0, pool.shares.places(indices), False)
    return rest[:-1]


def sample_rejected(
    ids: Tensor, scores: Tensor, rest: Tensor, positions: Tensor, key: DrawKey, stage: str, size: int
) -> Graded:
    """Sample rows that were not selected, uniformly: a function of the arguments alone. No host waits.

    Args:
        ids (`torch.Tensor`): Ids of n rows, int64 `[n]`.
        scores (`torch.Tensor`): Their scores, float32 `[n]`.
        rest (`torch.Tensor`): The rows to sample from, bool `[n]`.
        positions (`torch.Tensor`): Their positions in the super-batch of all ranks, int64 `[n]`.
        key ([`DrawKey`]): Seed and step.
        stage (`str`): The stage that did not select them.
        size (`int`): Rows to sample; fewer if there are not as many.
    """
    noise = noise_at(*key, 1, positions, first_chunk=_CHUNK)[0].masked_fill_(~rest, -torch.inf)
    found, places = noise.topk(min(size, len(noise)))
    return Graded(ids[places].masked_fill(found == -torch.inf, -1), scores[places], stage, places)


def sample_of_pool(
    pool: Pool, scores: Tensor, indices: Tensor, key: DrawKey, stage: str, n_ranks: int, own: slice = slice(None)
) -> Graded:
    """Sample this rank's part of `N_REJECTED` rows of a pool that were not selected. No host waits.

    Args:
        pool ([`Pool`]): The candidates.
        scores (`torch.Tensor`): The scores of its rows, float32 `[n]`.
        indices (`torch.Tensor`): The selection, int64 `[b]`, positions in the super-batch.
        key ([`DrawKey`]): Seed and step.
        stage (`str`): The stage that made the selection.
        n_ranks (`int`): Number of ranks, each of which samples.
        own (`slice`, *optional*): This rank's rows in a pool that holds those of all ranks.
    """
    ids, rest, positions = pool.rows["example_id"][own], left_over(pool, indices)[own], pool.positions[own]
    return sample_rejected(ids, scores[own], rest, positions, key, stage, -(-N_REJECTED // n_ranks))


def scores_of(pool: Pool, scores: Tensor, indices: Tensor) -> Tensor:
    """Return the scores of a selection on every rank, float32 `[b]`; `scores` are those of this rank's rows. A
    collective."""
    return pool.ranks.sum(torch.cat([scores, scores.new_zeros(1)])[pool.shares.places(indices)])


__all__ = [
    "N_REJECTED",
    "STAGES",
    "Graded",
    "left_over",
    "own_scores",
    "sample_of_pool",
    "sample_rejected",
    "scores_of",
]
