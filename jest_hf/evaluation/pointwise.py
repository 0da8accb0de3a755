# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of models whose examples stand alone: loss and accuracy of classifiers, perplexity of language models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jest_hf.data.labelled import LabelledCollator
from jest_hf.distributed import Ranks, gather_to_cpu
from jest_hf.losses.pointwise import IGNORED, per_example_losses


class EvaluationCollator:
    """
    Rows to a batch with `n_rows` more, the number of rows: it may be 0, and there is one blank row then all the same,
    so that every batch can go through a model.

    Args:
        collator ([`~data.labelled.LabelledCollator`]): How rows are read.
    """

    def __init__(self, collator: LabelledCollator) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.collator(rows) if rows else self.collator.blank()
        return batch | {"n_rows": torch.tensor(len(rows))}


@dataclass
class LabelledResults:
    """
    A data set with labels as one model sees it, without the rows that could not be read.

    Args:
        losses (`torch.Tensor`): fp32 `[N]`: cross-entropy of each example in nats, without label smoothing.
        n_labels (`torch.Tensor`): int64 `[N]`: labels (tokens) that each is the mean of.
        logits (`torch.Tensor`, *optional*): fp32 `[N, C]` of a classifier of whole examples.
        labels (`torch.Tensor`, *optional*): int64 `[N]`, its labels.
        skipped (`int`): Broken rows that were left out.
    """

    losses: Tensor
    n_labels: Tensor
    logits: Tensor | None
    labels: Tensor | None
    skipped: int

    @property
    def predictions(self) -> tuple[Tensor, ...]:
        """The logits of a classifier; the losses where logits of every token would fill the memory."""
        return (self.losses if self.logits is None else self.logits,)

    @property
    def n_examples(self) -> int:
        """Examples that were read."""
        return len(self.losses)

    def metrics(self) -> dict[str, float]:
        """
        `loss`, the mean over examples, and `examples_skipped`; of classifiers of whole examples `accuracy`, of others
        `perplexity`, the exponential of the mean over all tokens.
        """
        losses = self.losses.double()
        metrics = {"loss": losses.mean().item(), "examples_skipped": self.skipped}
        if self.logits is not None:
            return metrics | {"accuracy": (self.logits.argmax(dim=1) == self.labels).double().mean().item()}
        over_tokens = (losses * self.n_labels).sum() / self.n_labels.sum()
        return metrics | {"perplexity": math.exp(over_tokens.item())}


@torch.no_grad()
def evaluate_labelled(
    read: Callable[..., Any],
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    device: torch.device,
    *,
    causal: bool,
    ranks: Ranks | None = None,
) -> LabelledResults:
    """
    Evaluate the batches of an [`EvaluationCollator`], in eval mode.

    Args:
        read (`Callable`): `read(model, batch)` is one forward, a [`~objectives.PointwiseReader`].
        model (`torch.nn.Module`): the model, wrapped or not.
        batches (iterable): this rank's batches, as many as every other rank's ([`~data.rows.share_batches`] sees to
            it): each is one forward, a collective under some engines.
        device (`torch.device`): the model's.
        causal (`bool`): as in [`per_example_losses`].
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): who shares the data set; `None` is this process alone.

    Returns:
        [`LabelledResults`]: of the whole data set, on every rank, in the order of ranks.

    Raises:
        ValueError: on all ranks, if no row can be read.
    """
    ranks = ranks or Ranks()
    model.eval()
    columns: dict[str, list[Tensor]] = {"losses": [], "n_labels": [], "logits": [], "labels": []}
    skipped = 0
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        n_rows = int(batch.pop("n_rows"))
        logits, labels, valid = read(model, batch).logits, batch["labels"], batch["valid"]
        skipped += n_rows - int(valid.sum())
        counted = labels[:, 1:] if causal else labels
        columns["losses"].append(per_example_losses(logits, labels, causal=causal)[valid].float().cpu())
        columns["n_labels"].append((counted != IGNORED).view(len(labels), -1).sum(dim=1)[valid].cpu())
        if logits.ndim == 2:
            columns["logits"].append(logits[valid].float().cpu())
            columns["labels"].append(labels[valid].cpu())
    skipped = sum(ranks.gather_counts(skipped, device))
    gathered = {name: gather_to_cpu(ranks, torch.cat(parts), device) for name, parts in columns.items() if parts}
    if len(gathered["losses"]) == 0:
        raise ValueError(f"not one of the {skipped} evaluation rows can be read; check their columns.")
    return LabelledResults(
        losses=gathered["losses"],
        n_labels=gathered["n_labels"],
        logits=gathered.get("logits"),
        labels=gathered.get("labels"),
        skipped=skipped,
    )


__all__ = ["EvaluationCollator", "LabelledResults", "evaluate_labelled"]
