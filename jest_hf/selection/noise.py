# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Gumbel noise that is a function of its arguments alone.

Selection must not share the global random state with dropout and data loaders, must be the same on every rank, and has
to resume without a saved state. So the noise is counter-based: each value is a hash of (seed, step, chunk, position),
and any slice of positions can be computed anywhere. The hash takes in one word after the other, with a step of
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) after each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gumbel_noise(
    seed: int,
    step: int,
    n_chunks: int,
    size: int,
    *,
    first_chunk: int = 0,
    start: int = 0,
    stop: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return standard Gumbel noise, float32 `[n_chunks, stop - start]`.

    Adding Gumbel noise to log-weights and taking the top k samples k items without replacement (arXiv 1903.06059).

    Args:
        seed (`int`): The run's seed, 0 <= seed < 2**63.
        step (`int`): The training step, 0 <= step < 2**63.
        n_chunks (`int`): Number of chunks: one row of noise each.
        size (`int`): Number of candidates in the global super-batch (B).
        first_chunk (`int`, *optional*, defaults to 0): Chunk that the first row is of.
        start (`int`, *optional*, defaults to 0): First position of the global super-batch to return.
        stop (`int`, *optional*, defaults to `size`): End of the positions to return.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where to compute it.

    The value at (chunk, position) depends on `seed`, `step`, `chunk` and `position` alone, neither on the slice asked
    for nor on `n_chunks` or `size`.

    Raises:
        ValueError: if the seed or the step is out of range, `n_chunks` is below 1, or the slice is not within `size`.
    """
    stop = size if stop is None else stop
    if not 0 <= start <= stop <= size:
        raise ValueError(f"start and stop must satisfy 0 <= start <= stop <= {size}, got {start} and {stop}.")

    return noise_at(seed, step, n_chunks, torch.arange(start, stop, device=device), first_chunk=first_chunk)


def noise_at(seed: int, step: int, n_chunks: int, positions: Tensor, *, first_chunk: int = 0) -> Tensor:
    """Return the noise of [`gumbel_noise`] at any positions (int64 `[n]`, in any order): float32 `[n_chunks, n]`."""
    for name, value in (("seed", seed), ("step", step)):
        if not 0 <= value < 2**63:
            raise ValueError(f"{name} must be at least 0 and below 2**63, got {value}.")
    if n_chunks < 1:
        raise ValueError(f"n_chunks must be at least 1, got {n_chunks}.")
    device = positions.device
    chunks = torch.arange(first_chunk, first_chunk + n_chunks, device=device)[:, None]
    state = torch.zeros((), dtype=torch.int64, device=device)
    for word in (seed, step, chunks, positions):
        state = _mix(state + word)
    # 52 bits and a half: every value is exact in float64 and strictly inside (0, 1), so both logarithms are finite.
    uniform = (_shift_right(state, 12).double() + 0.5) * 2.0**-52
    return uniform.log_().neg_().log_().neg_().float()


def _mix(state: Tensor) -> Tensor:
    """One step of SplitMix64: advance the state, then scramble it. int64 arithmetic wraps like uint64."""
    state = state + _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift_right(state, 31)


def _shift_right(state: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own repeats the sign bit."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The int64 with the same bits as this uint64."""
    return word - 2**64 if word >= 2**63 else word


__all__ = ["gumbel_noise", "noise_at"]
