# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation on single examples: loss and accuracy of classifiers, loss and perplexity of language models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jest_hf.data.labelled import LabelledCollator
from jest_hf.data.reasons import first_reasons
from jest_hf.distributed import Ranks, gather_to_cpu
from jest_hf.losses.pointwise import IGNORED, per_example_losses


class EvaluationCollator:
    """Makes an evaluation batch from a list of rows, and adds the number of rows as `n_rows`.

    For an empty list the batch has one blank row, so that every batch can be fed to a model, and `n_rows` is 0.

    Args:
        collator ([`~jest_hf.data.labelled.LabelledCollator`]): Reads the rows. To predict rows without labels too,
            pass `collator.without_labels()`.
    """

    def __init__(self, collator: LabelledCollator) -> None:
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.collator(rows) if rows else self.collator.blank()
        return batch | {"n_rows": torch.tensor(len(rows))}


@dataclass
class LabelledResults:
    """Losses and logits of all rows of a data set under one model, in the order of the rows, skipped rows included.

    Args:
        losses (`torch.Tensor`): Cross-entropy of each example in nats, without label smoothing, fp32 `[N]`; NaN
            without a label.
        n_labels (`torch.Tensor`): Number of labels (tokens) that each loss is the mean of, int64 `[N]`.
        valid (`torch.Tensor`): False for a row that the collator skipped, bool `[N]`.
        logits (`torch.Tensor`, *optional*): Logits of a classifier of whole examples, fp32 `[N, C]`; NaN for skipped
            rows.
        labels (`torch.Tensor`, *optional*): Labels of a classifier of whole examples, int64 `[N]`; -100 for no label.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.evaluation.labelled import LabelledResults
    >>> counted, valid = torch.tensor([1, 1, 0]), torch.tensor([True, True, False])  # the last row was skipped
    >>> logits, labels = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1, -100])
    >>> results = LabelledResults(torch.tensor([0.5, 1.5, torch.nan]), counted, valid, logits, labels)
    >>> results.metrics()
    {'loss': 1.0, 'examples_skipped': 1, 'accuracy': 0.5}

    ```
    """

    losses: Tensor
    n_labels: Tensor
    valid: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None

    @property
    def predictions(self) -> np.ndarray:
        """The logits of a classifier; the losses of a language model, whose logits would fill the memory."""
        return (self.losses if self.logits is None else self.logits).numpy()

    @property
    def label_ids(self) -> np.ndarray | None:
        """The labels of a classifier's rows, or `None` if no row has a label."""
        return self.labels.numpy() if self.labels is not None and self.n_labels.any() else None

    @property
    def n_examples(self) -> int:
        """Number of examples that were read."""
        return int(self.valid.sum())

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the data set.

        Returns:
            `dict[str, float]`: `examples_skipped`; if there are labels also `loss` (mean over examples with a label)
            and, for a classifier of whole examples, `accuracy`, or for other models `perplexity` (exponential of the
            mean loss over all tokens).
        """
        skipped: dict[str, float] = {"examples_skipped": len(self.valid) - self.n_examples}
        counted = self.n_labels > 0
        if not counted.any():
            return skipped
        losses, n_labels = self.losses[counted].double(), self.n_labels[counted]
        metrics = {"loss": losses.mean().item(), **skipped}
        if self.logits is not None and self.labels is not None:
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
    """Evaluate a model, in eval mode, on the batches of an [`EvaluationCollator`]. A collective.

    Args:
        read (`Callable`): `read(model, batch)` makes one forward, such as a
            [`~jest_hf.models.labelled.PointwiseReader`].
        model (`torch.nn.Module`): The model, wrapped or not.
        batches (iterable): This rank's batches, the same number on every rank (see
            [`~jest_hf.data.rows.share_batches`]), since a forward is a collective under some engines.
        device (`torch.device`): Device of the model.
        causal (`bool`): As in [`~jest_hf.losses.pointwise.per_example_losses`].
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The processes that share the data set; by default this
            process alone.

    Returns:
        [`LabelledResults`]: Results of the whole data set, in the order of its rows, on every rank.

    Raises:
        ValueError: On all ranks, if no row can be read.
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
            columns[name].append(rows[:n_rows].cpu())  # without the blank row of an empty batch
    gathered = {name: gather_to_cpu(ranks, torch.cat(parts), device) for name, parts in columns.items() if parts}
    if not gathered["valid"].any():
        raise ValueError(
            f"not one of the {len(gathered['valid'])} evaluation rows can be read "
            f"({first_reasons(getattr(batches, 'dataset', None), getattr(batches, 'collate_fn', None))}); check their "
            "images, texts and labels."
        )
    return LabelledResults(**gathered)


__all__ = ["EvaluationCollator", "LabelledResults", "evaluate_labelled"]
