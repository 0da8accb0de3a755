# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Selection by a score of each example alone: sampling (arXiv 2312.05328), top-k (arXiv 2206.07137), and uniform."""

from __future__ import annotations

import torch
from torch import Tensor

from jest_hf.distributed import Ranks
from jest_hf.selection.draw import Candidates, check_draw, check_eligible, check_noise, raised_on_all


def select_independently(
    pointwise_scores: Tensor,
    size: int,
    noise: Tensor | None = None,
    gain: float = 1.0,
    eligible: Tensor | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Draw a sub-batch without replacement, with probabilities proportional to ``exp(gain * score)``, or take the top.

    Args:
        pointwise_scores (`torch.Tensor`): One score per example of the super-batch, `[B]`, any floating dtype.
        size (`int`): Size of the sub-batch (b).
        noise (`torch.Tensor`, *optional*): Gumbel noise `[B]`, as one row of [`gumbel_noise`]. `None` is no noise: the
            `size` highest scores, as in RHO-LOSS (arXiv 2206.07137).
        gain (`float`, *optional*, defaults to 1.0): Factor on the scores.
        eligible (`torch.Tensor`, *optional*): bool `[B]`; the others are never drawn, and their scores may be NaN.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): Who draws together; by default this process alone. Then the
            tensors are this rank's share of the super-batch; `size` and the indices are about the whole.

    Returns:
        `torch.Tensor`: Positions in the super-batch, int64 `[size]`, distinct, in order of drawing. Of equal keys the
        lowest position is drawn first.

    Raises:
        ValueError: if the scores are not `[B]`, `size` is below 1 or above the number of eligible examples, `gain` is
            not positive and finite, `noise` or `eligible` has the wrong shape, or a score is NaN or infinite.
            Whatever is wrong on one rank is raised on all.
    """
    ranks = Ranks() if ranks is None else ranks
    device = pointwise_scores.device
    with raised_on_all(ranks, device):
        if pointwise_scores.ndim != 1:
            raise ValueError(f"pointwise scores must be [B], got {list(pointwise_scores.shape)}.")
        check_draw(size, gain)
        available = check_eligible(eligible, len(pointwise_scores), device)
        noise = torch.zeros(len(pointwise_scores), device=device) if noise is None else noise
        noise = check_noise(noise, (len(pointwise_scores),), device)
    return Candidates(available, [size], ranks).draw(gain * pointwise_scores.detach().double(), noise, size).indices


def select_uniformly(noise: Tensor, size: int, eligible: Tensor | None = None) -> Tensor:
    """Draw `size` of B examples uniformly without replacement, given Gumbel `noise` `[B]`; int64 `[size]`."""
    return select_independently(torch.zeros_like(noise), size, noise, eligible=eligible)


__all__ = ["select_independently", "select_uniformly"]
