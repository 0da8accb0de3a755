# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of models whose examples stand alone: loss and accuracy of classifiers, perplexity of language models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
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
        collator ([`~data.labelled.LabelledCollator`]): How rows are read; one [`~LabelledCollator.without_labels`]
            keeps those that have none, to predict them.
    """

    def __init__(self, collator: LabelledCollator) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.collator(rows) if rows else self.collator.blank()
        return batch | {"n_rows": torch.tensor(len(rows))}


@dataclass
class LabelledResults:
    """
    The rows of a data set as one model sees them, in their order: also those that could not be read.

    Args:
        losses (`torch.Tensor`): fp32 `[N]`: cross-entropy of each example in nats, without label smoothing; NaN
            without a label.
        n_labels (`torch.Tensor`): int64 `[N]`: labels (tokens) that each is the mean of, 0 where there are none.
        valid (`torch.Tensor`): bool `[N]`: False for a row that was skipped (see the collator).
        logits (`torch.Tensor`, *optional*): fp32 `[N, C]` of a classifier of whole examples, NaN in skipped rows.
        labels (`torch.Tensor`, *optional*): int64 `[N]`, its labels; -100 for none.
    """

    losses: Tensor
    n_labels: Tensor
    valid: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None

    @property
    def predictions(self) -> np.ndarray:
        """The logits of a classifier; the losses where logits of every token would fill the memory."""
        return (self.losses if self.logits is None else self.logits).numpy()

    @property
    def label_ids(self) -> np.ndarray | None:
        """The labels of a classifier's rows, where there are any."""
        return self.labels.numpy() if self.labels is not None and self.n_labels.any() else None

    @property
    def n_examples(self) -> int:
        """Examples that were read."""
        return int(self.valid.sum())

    def metrics(self) -> dict[str, float]:
        """
        `examples_skipped`, and over the rows with a label `loss`, the mean over examples; of classifiers of whole
        examples `accuracy`, of others `perplexity`, the exponential of the mean over all tokens.
        """
        skipped, counted = {"examples_skipped": len(self.valid) - self.n_examples}, self.n_labels > 0
        if not counted.any():
            return skipped
        losses, n_labels = self.losses[counted].double(), self.n_labels[counted]
        metrics = {"loss": losses.mean().item(), **skipped}
        if self.logits is not None:
            right = self.logits[counted].argmax(dim=1) == self.labels[counted]
            return metrics | {"accuracy": right.double().mean().item()}
        return metrics | {"perplexity": ((losses * n_labels).sum() / n_labels.sum()).exp().item()}


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
        [`LabelledResults`]: of the whole data set, on every rank, in the order of ranks, which is that of the rows.

    Raises:
        ValueError: on all ranks, if no row can be read.
    """
    ranks = ranks or Ranks()
    model.eval()
    columns: dict[str, list[Tensor]] = {"losses": [], "n_labels": [], "valid": [], "logits": [], "labels": []}
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        n_rows = int(batch.pop("n_rows"))
        logits, labels, valid = read(model, batch).logits, batch["labels"], batch["valid"]
        counted = labels[:, 1:] if causal else labels
        n_labels = (counted != IGNORED).view(len(labels), -1).sum(dim=1)
        losses = per_example_losses(logits, labels, causal=causal).float()
        found = {"losses": losses.where(n_labels > 0, torch.nan), "n_labels": n_labels, "valid": valid}
        if logits.ndim == 2:
            found |= {"logits": logits.float().where(valid[:, None], torch.nan), "labels": labels}
        for name, rows in found.items():
            columns[name].append(rows[:n_rows].cpu())  # without the blank row of a batch of none
    gathered = {name: gather_to_cpu(ranks, torch.cat(parts), device) for name, parts in columns.items() if parts}
    if not gathered["valid"].any():
        raise ValueError(
            f"not one of the {len(gathered['valid'])} evaluation rows can be read; check their images, texts and "
            "labels."
        )
    return LabelledResults(**gathered)


__all__ = ["EvaluationCollator", "LabelledResults", "evaluate_labelled"]
