# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of examples without pairs: one loss per example of a classifier or a language model.

Selection and training use the same numbers, one per example: the cross-entropy of a classification, or the mean
cross-entropy of an example's tokens. The training loss is their mean over the *examples* of the global sub-batch. For
language models this is not the mean over tokens that `transformers` computes: a short text has the same weight as a
long one, as in the selection, so that the update reduces the loss by which examples were selected. If all texts fill
the context the two means are equal.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jest_hf.distributed import Ranks


IGNORED = -100  # label of a position without a label, as in torch and transformers


def per_example_losses(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, causal: bool = False
) -> Tensor:
    """Cross-entropy of each example, in nats, with gradients.

    Args:
        logits (`torch.Tensor`): `[B, C]` of a classifier of examples, `[B, L, C]` of a classifier of tokens, any
            floating dtype. The arithmetic is float32 (float64 for float64 logits), also under autocast.
        labels (`torch.Tensor`): int64 `[B]` or `[B, L]`; -100 for positions without a label.
        label_smoothing (`float`, *optional*, defaults to `0.0`): Fraction of the target that is spread evenly over all
            C classes; ClassAct trains and scores with 0.1 (arXiv 2312.05328).
        causal (`bool`, *optional*, defaults to `False`): Whether the logits at a token predict the next token, as in a
            causal language model.

    Returns:
        `torch.Tensor`: `[B]`, float32 or better: the mean over the labels of an example; 0 for an example without
        labels.

    Raises:
        ValueError: if the shapes do not fit together, `labels` are not int64, `label_smoothing` is not in [0, 1), or
            `causal=True` with logits `[B, C]`.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.losses.pointwise import per_example_losses
    >>> per_example_losses(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), labels=torch.tensor([0, 1]))
    tensor([0.1269, 0.6931])

    ```
    """
    if logits.ndim not in (2, 3) or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"logits must be [B, C] with labels [B], or [B, L, C] with labels [B, L], but their shapes are "
            f"{list(logits.shape)} and {list(labels.shape)}: pass one label for each prediction."
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, but are {labels.dtype}: pass numbers of classes or tokens.")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1): 0.1 is usual, and 0 is none.")
    if logits.ndim == 2:
        if causal:
            raise ValueError("causal=True needs logits of tokens, [B, L, C], but these are [B, C]: set causal=False.")
        logits, labels = logits[:, None], labels[:, None]
    if causal:
        # Shift the labels and not the logits, as slicing the logits would copy them.
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    with torch.autocast(logits.device.type, enabled=False):
        losses = F.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="none",
        )
    n_labels = (labels != IGNORED).sum(dim=1)
    return losses.view(labels.shape).sum(dim=1) / n_labels.clamp(min=1)


def mean_over_ranks(losses: Tensor, ranks: Ranks | None = None) -> Tensor:
    """Return the mean of the losses of the examples of all ranks: the loss of the global sub-batch. A collective.

    Args:
        losses (`torch.Tensor`): Losses of this rank's examples, `[b_r]`, with their graph; `b_r` may differ between
            ranks.
        ranks ([`Ranks`], *optional*): The processes that share the sub-batch; `None` is this process alone. A rank
            back-propagates W times its part of the gradient, so that the *average* of the ranks' parameter gradients,
            which DDP, ZeRO and FSDP take, is exactly the gradient of the global loss.

    Returns:
        `torch.Tensor`: a scalar, bit-equal on all ranks; it can be differentiated only once.
    """
    mean: Tensor = _Mean.apply(losses, ranks or Ranks())  # type: ignore[no-untyped-call]  # torch has no annotation
    return mean


class _Mean(torch.autograd.Function):
    """Value and gradient of [`mean_over_ranks`]."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, ranks: Ranks) -> Tensor:
        total, count = ranks.sum(torch.stack([losses.sum(), losses.new_tensor(len(losses))]))
        ctx.n_losses, ctx.factor = len(losses), ranks.size / count
        mean: Tensor = total / count
        return mean

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient * ctx.factor).expand(ctx.n_losses), None


__all__ = ["IGNORED", "mean_over_ranks", "per_example_losses"]
