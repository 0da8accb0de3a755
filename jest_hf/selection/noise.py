# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Gumbel noise that is a function of its arguments alone.

Selection must not share the global random state with dropout and data loaders, must be the same on every rank, and
must resume without a saved state. So the noise is counter-based: each value is a hash of (seed, step, chunk,
position), and any process can compute the noise of any positions. The hash adds these four numbers to its state one
after the other, with a step of SplitMix64 after each (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014).

Equal arguments give equal bits on every device: the hash is integer arithmetic, and the logarithm uses only operations
that IEEE 754 rounds in one way, each in a kernel of its own. The logarithms of torch differ between devices in their
last bits.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from jest_hf.selection import arithmetic


# Values that are made at a time on a CPU, so that they stay in its cache. On a GPU they are made at once.
_BLOCK = 1 << 14
_Word = TypeVar("_Word", int, Tensor)

# Of the logarithm (see `_log`): ln 2 in two parts, of which k times the first is exact for every exponent k, and the
# polynomial, both as in Sun's fdlibm.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_POLYNOMIAL = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
_BITS_OF_SQRT_HALF = 0x3FE6A09E00000000


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
        first_chunk (`int`, *optional*, defaults to 0): Number of the chunk that the first row belongs to.
        start (`int`, *optional*, defaults to 0): First position of the global super-batch to return.
        stop (`int`, *optional*, defaults to `size`): End of the positions to return.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Device of the noise.

    The value at (chunk, position) depends on `seed`, `step`, `chunk` and `position` alone, and not on `start`, `stop`,
    `n_chunks` or `size`.

    Raises:
        ValueError: if the seed or the step is out of range, `n_chunks` is below 1, or the slice is not within `size`.

    Example:

    ```python
    >>> from jest_hf.selection import gumbel_noise
    >>> gumbel_noise(seed=42, step=1000, n_chunks=2, size=4)
    tensor([[ 0.6419,  0.8347,  0.8212,  0.0530],
            [ 1.2783,  0.7615,  3.3033, -0.2993]])
    >>> gumbel_noise(seed=42, step=1000, n_chunks=2, size=4, start=2)  # the share of a second rank
    tensor([[ 0.8212,  0.0530],
            [ 3.3033, -0.2993]])

    ```
    """
    stop = size if stop is None else stop
    if not 0 <= start <= stop <= size:
        raise ValueError(f"start and stop must satisfy 0 <= start <= stop <= {size}, got {start} and {stop}.")

    return noise_at(seed, step, n_chunks, torch.arange(start, stop, device=device), first_chunk=first_chunk)


def noise_at(seed: int, step: int, n_chunks: int, positions: Tensor, *, first_chunk: int = 0) -> Tensor:
    """Return the noise of [`gumbel_noise`] at any positions, in any order: float32 `[n_chunks, n]`.

    Args:
        seed, step, n_chunks, first_chunk: As in [`gumbel_noise`].
        positions (`torch.Tensor`): Positions in the global super-batch, int64 `[n]`. The noise is on their device, and
            made there if the device has float64; else it is made on the CPU.

    Raises:
        ValueError: if the seed or the step is out of range, or `n_chunks` is below 1.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.selection import noise_at
    >>> noise_at(seed=42, step=1000, n_chunks=1, positions=torch.tensor([3, 0]))
    tensor([[0.0530, 0.6419]])

    ```
    """
    for name, value in (("seed", seed), ("step", step)):
        if not 0 <= value < 2**63:
            raise ValueError(f"{name} must be at least 0 and below 2**63, got {value}.")
    if n_chunks < 1:
        raise ValueError(f"n_chunks must be at least 1, got {n_chunks}.")
    device = positions.device
    if arithmetic.wide_dtype(device) != torch.float64:
        positions = positions.cpu()
    state = 0
    for word in (seed, step):
        state = _signed(_mix(state + word) % 2**64)
    chunks = _mix(state + torch.arange(first_chunk, first_chunk + n_chunks, device=positions.device)[:, None])
    noise = torch.empty(n_chunks, len(positions), device=positions.device)
    block = max(1, _BLOCK // n_chunks if positions.is_cpu else len(positions))
    for values, part in zip(torch.split(noise, block, dim=1), torch.split(positions, block), strict=True):
        # 52 bits plus one half: every value is exact in float64 and strictly inside (0, 1), so both logarithms are
        # finite.
        uniform = _shift_right(_mix(chunks + part), 12).double().add_(0.5).mul_(2.0**-52)
        values.copy_(_log(_log(uniform).neg_()).neg_())
    return noise.to(device)


def _log(x: Tensor) -> Tensor:
    """The natural logarithm of positive float64 numbers, to less than one unit in the last place.

    With x = 2^k (1 + f) and 1 + f from sqrt(1/2) to sqrt(2): log(1 + f) = 2 atanh(s), where s = f / (2 + f), and the
    series of atanh ends after seven terms. Additions, multiplications and divisions alone, so that no two devices
    differ.
    """
    bits = x.view(torch.int64)
    k = (bits - _BITS_OF_SQRT_HALF) >> 52
    f = (bits - (k << 52)).view(torch.float64) - 1.0
    exponent = k.double()
    s = f / (f + 2.0)
    z = s * s
    series = z * _POLYNOMIAL[-1]
    for coefficient in _POLYNOMIAL[-2::-1]:
        series.add_(coefficient).mul_(z)
    half_square = (f * f).mul_(0.5)
    correction = s.mul_(series.add_(half_square)).add_(exponent * _LN2_LOW)
    return exponent.mul_(_LN2_HIGH).sub_(half_square.sub_(correction).sub_(f))


def _mix(state: _Word) -> _Word:
    """One step of SplitMix64: advance the state, then scramble it.

    int64 arithmetic wraps like uint64. Of a Python number the low 64 bits are the state.
    """
    state = state + _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift_right(state, 31)


def _shift_right(state: _Word, bits: int) -> _Word:
    """Shift right and fill with zeros; torch's `>>` repeats the sign bit."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The int64 with the same bits as this uint64."""
    return word - 2**64 if word >= 2**63 else word


__all__ = ["gumbel_noise", "noise_at"]
