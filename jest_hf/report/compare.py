# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of a selection: selected against rejected examples, and the selection against those of other selectors.

All selectors that use scores draw with the same noise, so that two selections differ by their criteria and not by
chance. `"uniform"` draws with other noise, so its overlap with the selection is the overlap of a chance selection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from jest_hf.batch import PointwiseLosses, Scored, Scores
from jest_hf.distributed import Ranks, Shares
from jest_hf.losses import LOSSES
from jest_hf.report.figures import Figure, read_figures
from jest_hf.selection import arithmetic
from jest_hf.selection.pool import DrawKey, Pool
from jest_hf.selection.selectors import Selector
from jest_hf.selection.sub_batch import take_scored


@torch.no_grad()
def compare_selected(
    parts: Mapping[str, Mapping[str, Scored]], loss: str | None, ranks: Ranks | None = None
) -> dict[str, float]:
    """Compute the losses of the sub-batch and of as many rejected examples, each as one batch. A collective.

    Args:
        parts (`dict`): Scored rows of this rank, by `"selected"` and `"rejected"` and then by model: `"learner"`,
            `"reference"` or both.
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`, for embeddings. [`PointwiseLosses`] are averaged.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The processes that share the batches; by default this
            process alone.

    Returns:
        `dict[str, float]`: `selected/learner_loss`, `rejected/reference_loss` and so on, and with both models
        `selected/learnability` and `rejected/learnability`: the learner's loss minus the reference's loss (arXiv
        2406.17711, section 2).

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.batch import PointwiseLosses
    >>> from jest_hf.report import compare_selected
    >>> learner, reference = PointwiseLosses(torch.tensor([3.0, 1.0])), PointwiseLosses(torch.tensor([1.0, 0.5]))
    >>> compare_selected({"selected": {"learner": learner, "reference": reference}}, loss="sigmoid")
    {'selected/learner_loss': 2.0, 'selected/reference_loss': 0.75, 'selected/learnability': 1.25}

    ```
    """
    return read_figures(selected_figures(parts, loss, ranks))


@torch.no_grad()
def selected_figures(
    parts: Mapping[str, Mapping[str, Scored]], loss: str | None, ranks: Ranks | None = None
) -> dict[str, Figure]:
    """As [`compare_selected`], of figures that stay on the device. A collective."""
    metrics: dict[str, Tensor] = {}
    for part, models in parts.items():
        for name, batch in models.items():
            metrics[f"{part}/{name}_loss"] = _loss_of_batch(batch, loss, ranks)
        if len(models) == 2:
            metrics[f"{part}/learnability"] = metrics[f"{part}/learner_loss"] - metrics[f"{part}/reference_loss"]
    return dict(metrics)


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
    """Compare a selection with what other selectors would have drawn in its place. A collective.

    Args:
        selectors (iterable of [`Selector`]): The other selectors, the same on every rank.
        pool ([`~jest_hf.selection.Pool`]): The candidates of the step.
        scores ([`~jest_hf.batch.Scores`]): The scores of this rank's n examples.
        key ([`~jest_hf.selection.DrawKey`]): Seed and step of the draw.
        indices (`torch.Tensor`): The selection, int64 `[b]`, positions in the super-batch.
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`: the loss of a batch of pairs. [`PointwiseLosses`] are
            averaged.
        sources (`torch.Tensor`, *optional*): Source of each of this rank's examples, int64 `[n]`, an index of
            `source_names`.
        source_names (sequence of `str`, *optional*): Names of the sources.

    Returns:
        `dict[str, float]`: For every selector, under `compare/<selector>/`: `overlap` (share of the selector's
        sub-batch that is in the selection too), with both models `learnability` (learner's loss minus reference's loss
        of the selector's sub-batch, as one batch), and `share/<source>` (share of the selector's sub-batch that comes
        from the source).
    """
    return read_figures(selector_figures(selectors, pool, scores, key, indices, loss, sources, source_names))


@torch.no_grad()
def selector_figures(
    selectors: Iterable[Selector],
    pool: Pool,
    scores: Scores,
    key: DrawKey,
    indices: Tensor,
    loss: str | None,
    sources: Tensor | None = None,
    source_names: Sequence[str] = (),
) -> dict[str, Figure]:
    """As [`compare_selectors`], of figures that stay on the device. A collective."""
    metrics: dict[str, Figure] = {}
    by_model = scores.by_model()
    for selector in selectors:
        drawn = selector.select(pool, lambda models: scores, key).indices
        # Positions of a selection are distinct; without that knowledge `isin` waits for their number.
        is_shared = torch.isin(drawn, indices, assume_unique=True)
        values = {"overlap": is_shared.to(arithmetic.wide_dtype(drawn.device)).mean()}
        if len(by_model) == 2:
            batch = take_scored(pool.shares, by_model, drawn)
            learner, reference = (_loss_of_batch(batch[name], loss, pool.ranks) for name in ("learner", "reference"))
            values["learnability"] = learner - reference
        if sources is not None:
            shares = _shares_of_sources(pool.shares, sources, len(source_names), drawn)
            values |= {f"share/{name}": share for name, share in zip(source_names, shares.unbind(), strict=True)}
        metrics |= {f"compare/{selector}/{name}": value for name, value in values.items()}
    return metrics


def batch_loss(scored: Scored, loss: str | None, ranks: Ranks | None = None) -> float:
    """Compute the loss of examples as one batch, which is spread over `ranks`. A collective.

    Args:
        scored ([`ContrastiveEmbeddings`] or [`PointwiseLosses`]): This rank's rows; of embeddings at least one row.
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`, for embeddings. [`PointwiseLosses`] are averaged.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The processes that share the batch; by default this process
            alone.

    Raises:
        ValueError: If `scored` holds embeddings and `loss` is `None`.
    """
    return _loss_of_batch(scored, loss, ranks).item()


def _loss_of_batch(scored: Scored, loss: str | None, ranks: Ranks | None) -> Tensor:
    """As [`batch_loss`], a float64 scalar (float32 on MPS) on the device. A collective."""
    ranks = Ranks() if ranks is None else ranks
    dtype = arithmetic.wide_dtype(scored.device)
    if isinstance(scored, PointwiseLosses):
        own = scored.losses.detach().to(dtype).sum()
        total, n = ranks.gather(torch.stack([own, torch.full_like(own, len(scored))])).sum(dim=0).unbind()
        return total / n
    if loss is None:
        raise ValueError('loss=None is not a loss of embeddings; pass "sigmoid" or "softmax".')
    return LOSSES[loss](scored.image, scored.text, scored.logit_scale, scored.logit_bias, ranks=ranks).to(dtype)


def source_shares(shares: Shares, sources: Tensor, names: Sequence[str], indices: Tensor) -> dict[str, float]:
    """Compute the share of a selection that comes from each source. A collective.

    Args:
        shares ([`~jest_hf.distributed.Shares`]): Rows of the super-batch on each rank.
        sources (`torch.Tensor`): Source of each of this rank's examples, int64 `[n]`, an index of `names`; any other
            number stands for an unknown source, which is not counted.
        names (sequence of `str`): Names of the sources.
        indices (`torch.Tensor`): The selection, int64 `[b]`, positions in the super-batch.

    Returns:
        `dict[str, float]`: Share of each source, by name.
    """
    return dict(zip(names, _shares_of_sources(shares, sources, len(names), indices).tolist(), strict=True))


def _shares_of_sources(shares: Shares, sources: Tensor, n_sources: int, indices: Tensor) -> Tensor:
    """As [`source_shares`], float64 `[n_sources]` (float32 on MPS) on the device. A collective."""
    # Examples of other ranks have the place behind the last one of this rank, which has no source.
    own = torch.cat([sources, sources.new_full((1,), -1)])[shares.places(indices)]
    counts = (own[:, None] == torch.arange(n_sources, device=own.device)).sum(dim=0)
    return shares.ranks.sum(counts).to(arithmetic.wide_dtype(own.device)) / len(indices)


__all__ = ["batch_loss", "compare_selected", "compare_selectors", "source_shares"]
