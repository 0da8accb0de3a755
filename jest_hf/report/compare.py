# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a selection: selected against rejected examples, and what other selectors would have drawn.

Every selector that uses scores draws with the noise of the step, so that two selections differ by what they select
for and not by chance. `"uniform"` has noise of its own: what it has in common with the selection is what chance gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from jest_hf.batch import PointwiseLosses, Scored, Scores
from jest_hf.distributed import Ranks, Shares
from jest_hf.losses import LOSSES
from jest_hf.selection.pool import DrawKey, Pool
from jest_hf.selection.selectors import Selector
from jest_hf.selection.sub_batch import take_scored


@torch.no_grad()
def compare_selected(
    parts: Mapping[str, Mapping[str, Scored]], loss: str, ranks: Ranks | None = None
) -> dict[str, float]:
    """
    Losses of the sub-batch and of as many rejected examples, each taken as one batch.

    Args:
        parts (`dict`): by `"selected"` and `"rejected"`, this rank's rows of either under `"learner"` and
            `"reference"`, or under the one that was scored.
        loss (`str`): `"sigmoid"` or `"softmax"`, of embeddings; the losses of single examples are averaged.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): over whom the batches are spread.

    Returns:
        `selected/learner_loss`, `rejected/reference_loss` and so on, and with both models `selected/learnability`
        (their difference, the score of a batch in the paper's section 2).
    """
    metrics = {}
    for part, models in parts.items():
        for name, batch in models.items():
            metrics[f"{part}/{name}_loss"] = batch_loss(batch, loss, ranks)
        if len(models) == 2:
            metrics[f"{part}/learnability"] = metrics[f"{part}/learner_loss"] - metrics[f"{part}/reference_loss"]
    return metrics


@torch.no_grad()
def compare_selectors(
    selectors: Iterable[Selector],
    pool: Pool,
    scores: Scores,
    key: DrawKey,
    indices: Tensor,
    loss: str | None,
    sources: Tensor | None = None,
    source_names: Sequence[str] = (),
) -> dict[str, float]:
    """
    Compare a selection with what other selectors would have drawn in its place. A collective.

    Args:
        selectors (iterable of [`Selector`]): The other selectors, the same on every rank.
        pool ([`~jest_hf.selection.Pool`]): The candidates of the step.
        scores ([`~jest_hf.batch.Scores`]): The scores of this rank's n examples.
        key ([`~jest_hf.selection.DrawKey`]): Seed and step of the draw.
        indices (`torch.Tensor`): The selection, int64 `[b]`, positions in the super-batch.
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`: the loss of a batch of pairs. [`PointwiseLosses`] are
            averaged.
        sources (`torch.Tensor`, *optional*): Where each of this rank's examples comes from, int64 `[n]`, numbers into
            `source_names`.
        source_names (sequence of `str`, *optional*): The sources.

    Returns:
        `dict[str, float]`: for every selector, under `compare/<selector>/`: `overlap` (the part of its sub-batch that
        was selected too), with both models `learnability` (learner's loss minus reference's loss of its sub-batch,
        taken as one batch), and `share/<source>` (the part of its sub-batch that comes from there).
    """
    metrics = {}
    by_model = scores.by_model()
    for selector in selectors:
        drawn = selector.select(pool, lambda models: scores, key).indices
        values = {"overlap": torch.isin(drawn, indices).double().mean().item()}
        if len(by_model) == 2:
            batch = take_scored(pool.shares, by_model, drawn)
            learner, reference = (batch_loss(batch[name], loss, pool.ranks) for name in ("learner", "reference"))
            values["learnability"] = learner - reference
        if sources is not None:
            shares = source_shares(pool.shares, sources, source_names, drawn)
            values |= {f"share/{name}": share for name, share in shares.items()}
        metrics |= {f"compare/{selector}/{name}": value for name, value in values.items()}
    return metrics


def batch_loss(scored: Scored, loss: str, ranks: Ranks | None = None) -> float:
    """The loss of examples taken as one batch, which is spread over `ranks`; a collective.

    Args:
        scored ([`ContrastiveEmbeddings`] or [`PointwiseLosses`]): This rank's rows; of pairs at least one.
        loss (`str`): `"sigmoid"` or `"softmax"`, for pairs; the loss of single examples is the mean of theirs.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): By default this process alone.
    """
    ranks = Ranks() if ranks is None else ranks
    if isinstance(scored, PointwiseLosses):
        own = scored.losses.detach().double().sum()
        total, n = ranks.gather(torch.stack([own, own.new_tensor(len(scored))])).sum(dim=0).tolist()
        return total / n
    return LOSSES[loss](scored.image, scored.text, scored.logit_scale, scored.logit_bias, ranks=ranks).item()


def source_shares(shares: Shares, sources: Tensor, names: Sequence[str], indices: Tensor) -> dict[str, float]:
    """
    The part of a selection that comes from each source; a collective.

    Args:
        shares ([`~jest_hf.distributed.Shares`]): How the super-batch lies over the ranks.
        sources (`torch.Tensor`): Where this rank's examples come from, int64 `[n]`, numbers into `names`; an example
            with another number comes from nowhere that has a name.
        names (sequence of `str`): The sources.
        indices (`torch.Tensor`): The selection, int64 `[b]`, positions in the super-batch.
    """
    own = sources[shares.own(indices)]
    counts = (own[:, None] == torch.arange(len(names), device=own.device)).sum(dim=0)
    return dict(zip(names, (shares.ranks.sum(counts).double() / len(indices)).tolist(), strict=True))


__all__ = ["batch_loss", "compare_selected", "compare_selectors", "source_shares"]
