# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The conditional terms of a joint draw on a CUDA device in one Triton kernel, whose logits never reach memory.

Each program of the kernel takes a tile of candidates, walks through the drawn examples a tile at a time, and reduces
each tile of logits as soon as it is computed: a sum of softplus for the sigmoid loss, a running logsumexp for the
softmax loss. Triton comes with torch for CUDA; this module can be imported without it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None


# Candidates and drawn examples of a tile of logits, and numbers of the embeddings that are multiplied at a time.
_CANDIDATES, _DRAWN, _WIDTH = 128, 128, 32


def is_available() -> bool:
    """Return whether Triton is installed."""
    return triton is not None


def reduce_logits(candidates: Tensor, drawn: Tensor, bias: float, *, softmax: bool, tf32: bool = False) -> Tensor:
    """Reduce the logits of each candidate with the drawn examples: the sum of softplus, or logsumexp.

    Args:
        candidates (`torch.Tensor`): Embeddings `[n, D]`, float32 or bfloat16.
        drawn (`torch.Tensor`): Embeddings `[m, D]` of the same dtype, multiplied by the scale; m is at least 1.
        bias (`float`): Added to every product.
        softmax (`bool`): Whether to return `logsumexp` over the drawn examples, in place of the sum of softplus.
        tf32 (`bool`, *optional*, defaults to `False`): Whether float32 embeddings are rounded to TF32 in the products.

    Returns:
        `torch.Tensor`: float32 `[n]`; the products and the sums are float32.
    """
    reduced = torch.empty(len(candidates), dtype=torch.float32, device=candidates.device)
    if len(candidates) == 0:
        return reduced
    _kernel[(triton.cdiv(len(candidates), _CANDIDATES),)](
        candidates,
        drawn,
        reduced,
        len(candidates),
        len(drawn),
        candidates.shape[1],
        *candidates.stride(),
        *drawn.stride(),
        bias,
        SOFTMAX=softmax,
        PRECISION="tf32" if tf32 else "ieee",
        CANDIDATES=_CANDIDATES,
        DRAWN=_DRAWN,
        WIDTH=_WIDTH,
        num_warps=8,
    )
    return reduced


def _reduce_logits(  # type: ignore[no-untyped-def]  # Triton reads annotations as types of its own
    candidates,
    drawn,
    reduced,
    n_candidates,
    n_drawn,
    width,
    candidates_row,
    candidates_column,
    drawn_row,
    drawn_column,
    bias,
    SOFTMAX: tl.constexpr,
    PRECISION: tl.constexpr,
    CANDIDATES: tl.constexpr,
    DRAWN: tl.constexpr,
    WIDTH: tl.constexpr,
):
    of_candidates = tl.program_id(0) * CANDIDATES + tl.arange(0, CANDIDATES)
    # int64: B times D may exceed 2**31.
    candidate_rows = of_candidates.to(tl.int64)[:, None] * candidates_row
    columns = tl.arange(0, WIDTH)
    # Of the softmax loss: the largest logit so far, and the sum of the exponentials below it.
    largest = tl.full((CANDIDATES,), float("-inf"), tl.float32)
    total = tl.zeros((CANDIDATES,), tl.float32)
    for first in range(0, n_drawn, DRAWN):
        of_drawn = first + tl.arange(0, DRAWN)
        logits = tl.zeros((CANDIDATES, DRAWN), tl.float32)
        for start in range(0, width, WIDTH):
            of_width = start + columns
            one = tl.load(
                candidates + candidate_rows + of_width[None, :] * candidates_column,
                mask=(of_candidates[:, None] < n_candidates) & (of_width[None, :] < width),
                other=0.0,
            )
            other = tl.load(
                drawn + of_drawn[None, :] * drawn_row + of_width[:, None] * drawn_column,
                mask=(of_drawn[None, :] < n_drawn) & (of_width[:, None] < width),
                other=0.0,
            )
            logits = tl.dot(one, other, logits, input_precision=PRECISION)
        # Behind the last drawn example: softplus and the exponential of minus infinity are 0.
        logits = tl.where(of_drawn[None, :] < n_drawn, logits + bias, float("-inf"))
        if SOFTMAX:
            now = tl.maximum(largest, tl.max(logits, axis=1))
            total = total * tl.exp(largest - now) + tl.sum(tl.exp(logits - now[:, None]), axis=1)
            largest = now
        else:
            # log(1 + x) would round a small x away, and thousands of small terms count: below 0.03 a series.
            x = tl.exp(-tl.abs(logits))
            series = x * (1.0 - x * (1.0 / 2 - x * (1.0 / 3 - x * (1.0 / 4))))
            logarithm = tl.where(x < 0.03, series, tl.log(1.0 + x))
            total += tl.sum(tl.maximum(logits, 0.0) + logarithm, axis=1)
    if SOFTMAX:
        total = largest + tl.log(total)
    tl.store(reduced + of_candidates, total, mask=of_candidates < n_candidates)


_kernel: Any = None if triton is None else triton.jit(_reduce_logits)


__all__ = ["is_available", "reduce_logits"]
