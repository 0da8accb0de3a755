# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Drawing without replacement by Gumbel-top-k: what joint and independent selection have in common.

Adding independent Gumbel(0, 1) noise to log-weights and taking the k largest is exactly drawing k items one after the
other without replacement with probabilities proportional to the weights (arXiv 1903.06059). It needs no normaliser
and no exponential, so scores of any size are safe.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


_POSITIONS_SHOWN = 8


def candidates(n_examples: int, size: int, gain: float, eligible: Tensor | None, device: torch.device) -> Tensor:
    """Check what was asked for and return who can be drawn, a fresh bool `[B]`.

    Raises:
        ValueError: if `size` is below 1 or above the number of eligible candidates, `gain` is not positive and finite,
            or `eligible` is not a bool `[B]`.
    """
    if not (math.isfinite(gain) and gain > 0):
        raise ValueError(f"gain must be a positive finite number, got {gain}.")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    if eligible is None:
        available = torch.ones(n_examples, dtype=torch.bool, device=device)
    elif eligible.dtype != torch.bool or eligible.shape != (n_examples,):
        raise ValueError(
            f"eligible must be a bool tensor of shape [{n_examples}], got {eligible.dtype} {list(eligible.shape)}."
        )
    else:
        available = eligible.to(device, copy=True)
    n_available = int(available.sum())
    if size > n_available:
        raise ValueError(f"size must be at most the number of eligible examples, {n_available}, got {size}.")
    return available


def check_noise(noise: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the noise on `device`.

    Raises:
        ValueError: if it has another shape, or a value that is not finite.
    """
    if noise.shape != shape:
        raise ValueError(f"noise must have shape {list(shape)}, got {list(noise.shape)}.")
    if not noise.isfinite().all():
        raise ValueError("noise must be finite: use gumbel_noise(seed, step, n_chunks, size).")
    return noise.to(device)


def check_finite(log_weights: Tensor, available: Tensor) -> None:
    """Raise a `ValueError` that names the candidates whose score is NaN or infinite."""
    broken = (~log_weights.isfinite() & available).nonzero().flatten().tolist()
    if broken:
        shown = ", ".join(map(str, broken[:_POSITIONS_SHOWN])) + (", ..." if len(broken) > _POSITIONS_SHOWN else "")
        raise ValueError(
            f"{len(broken)} of {int(available.sum())} candidates have a score that is NaN or infinite "
            f"(positions {shown}): mend these examples, or leave them out with eligible=."
        )


def top(keys: Tensor, available: Tensor, size: int) -> Tensor:
    """Return the positions of the `size` largest finite keys among those available, largest first, int64 `[size]`.

    A stable sort, because `torch.topk` promises no order among equal keys: here the lowest position comes first, on
    every device and every time. The sort is O(B log B) beside the O(B b D / N) of the scores.
    """
    keys = keys.masked_fill(~available, -torch.inf)
    return keys.sort(descending=True, stable=True).indices[:size]


def effective_sample_size(log_weights: Tensor, available: Tensor) -> float:
    """Return 1 / sum p^2 for p = softmax of the available log-weights: how many candidates compete for a draw."""
    log_p = log_weights[available].double().log_softmax(dim=0)
    return math.exp(-float((2 * log_p).logsumexp(dim=0)))
