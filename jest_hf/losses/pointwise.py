# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of examples that stand alone: what a classifier or a language model says of each by itself.

The scores of a selection and the loss of the training are made of the same numbers, one per example: the cross-entropy
of a classification, or the mean cross-entropy of an example's tokens. The training loss is their mean over the
*examples* of the global sub-batch. For language models that is not the mean over tokens which `transformers` takes: a
short text counts as much as a long one, as it does in the selection, so that what is selected for a large learnable
loss is also what the update is made of. Where all texts fill the context the two are the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jest_hf.distributed import Ranks


IGNORED = -100  # the label of what has none, as everywhere in torch and transformers


def per_example_losses(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, causal: bool = False
) -> Tensor:
    """
    Cross-entropy of each example, in nats, with gradients.

    Args:
        logits (`torch.Tensor`): `[B, C]` of a classifier of whole examples, `[B, L, C]` of one of tokens; any floating
            dtype. The arithmetic is float32 (float64 for float64 logits), also under autocast.
        labels (`torch.Tensor`): int64 `[B]` or `[B, L]`; -100 where there is nothing to predict.
        label_smoothing (`float`, *optional*, defaults to `0.0`): Share of the target that is spread evenly over all C
            classes; ClassAct trains and scores with 0.1 (arXiv 2312.05328).
        causal (`bool`, *optional*, defaults to `False`): Whether the logits at a token predict the next one, as those
            of a causal language model do.

    Returns:
        `torch.Tensor`: `[B]`, the mean over an example's labels; 0 for an example without any.

    Raises:
        ValueError: if the shapes do not fit together, `labels` are not int64, `label_smoothing` is not in [0, 1), or
            `causal` is asked of logits without tokens.
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
        # The labels move and not the logits, of which a slice would be a copy.
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
    """
    The mean of the losses of the examples of all ranks: the loss of the global sub-batch.

    Args:
        losses (`torch.Tensor`): Of this rank's examples, `[b_r]`, with their graph; shares may differ.
        ranks ([`Ranks`], *optional*): The processes that share the sub-batch; `None` is this process alone. A
            collective. What a rank back-propagates is W times its part of the gradient, so that the *average* of the
            ranks' parameter gradients, which DDP, ZeRO and FSDP take, is exactly the gradient of the global loss.

    Returns:
        `torch.Tensor`: a scalar, the same to the bit on every rank; it can be differentiated once.
    """
    mean: Tensor = _Mean.apply(losses, ranks or Ranks())  # type: ignore[no-untyped-call]  # torch has no annotation
    return mean


class _Mean(torch.autograd.Function):
    """See [`mean_over_ranks`]: the value is that of all, and the gradient W times that of this rank's part."""

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
