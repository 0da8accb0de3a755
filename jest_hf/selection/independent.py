# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Selection by a score of each example alone: sampling (arXiv 2312.05328), top-k (arXiv 2206.07137), and uniform."""

from __future__ import annotations

import torch
from torch import Tensor

from jest_hf.selection.draw import candidates, check_finite, check_noise, top


def select_independently(
    pointwise_scores: Tensor,
    size: int,
    noise: Tensor | None = None,
    gain: float = 1.0,
    eligible: Tensor | None = None,
) -> Tensor:
    """Draw a sub-batch without replacement, with probabilities proportional to ``exp(gain * score)``, or take the top.

    Args:
        pointwise_scores (`torch.Tensor`): One score per example of the super-batch, `[B]`, any floating dtype.
        size (`int`): Size of the sub-batch (b).
        noise (`torch.Tensor`, *optional*): Gumbel noise `[B]`, as one row of [`gumbel_noise`]. `None` is no noise: the
            `size` highest scores, as in RHO-LOSS (arXiv 2206.07137).
        gain (`float`, *optional*, defaults to 1.0): Factor on the scores.
        eligible (`torch.Tensor`, *optional*): bool `[B]`; the others are never drawn, and their scores may be NaN.

    Returns:
        `torch.Tensor`: Positions in the super-batch, int64 `[size]`, distinct, in order of drawing. Of equal keys the
        lowest position is drawn first.

    Raises:
        ValueError: if the scores are not `[B]`, `size` is below 1 or above the number of eligible examples, `gain` is
            not positive and finite, `noise` or `eligible` has the wrong shape, or a score is NaN or infinite.
    """
    if pointwise_scores.ndim != 1:
        raise ValueError(f"pointwise scores must be [B], got {list(pointwise_scores.shape)}.")
    device = pointwise_scores.device
    available = candidates(len(pointwise_scores), size, gain, eligible, device)
    keys = gain * pointwise_scores.detach().double()
    check_finite(keys, available)
    if noise is not None:
        keys = keys + check_noise(noise, (len(pointwise_scores),), device)
    return top(keys, available, size)


def select_uniformly(noise: Tensor, size: int, eligible: Tensor | None = None) -> Tensor:
    """Draw `size` of B examples uniformly without replacement, given Gumbel `noise` `[B]`; int64 `[size]`."""
    return select_independently(torch.zeros_like(noise), size, noise, eligible=eligible)


__all__ = ["select_independently", "select_uniformly"]
