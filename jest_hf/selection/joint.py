# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Joint example selection: Algorithm 1 of JEST (arXiv 2406.17711), exactly, without the score matrix.

The sub-batch is drawn in chunks. The first chunk is drawn by the examples' own scores; each further one also by how
the candidates score together with everything drawn before:

1. the log-weight of a candidate is ``gain * (d + conditional)``: its own pair's score and the conditional term;
2. the chunk is drawn from these without replacement, by Gumbel-top-k;
3. the conditional term is a running sum, and meets the rows and columns of the examples just drawn, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from jest_hf.selection.draw import candidates, check_finite, check_noise, effective_sample_size, top
from jest_hf.selection.noise import gumbel_noise
from jest_hf.selection.pairwise import PairwiseScores


class Chunk(NamedTuple):
    """One chunk of a joint draw.

    Attributes:
        indices (`torch.Tensor`): Positions in the super-batch, int64, in order of drawing.
        effective_sample_size (`float`): 1 / sum p^2 over the candidates that were left, p their probabilities of being
            drawn first in this chunk: near their number where the draw is nearly uniform, near 1 where it is greedy.
    """

    indices: Tensor
    effective_sample_size: float


def chunk_sizes(size: int, n_chunks: int) -> list[int]:
    """Return how many examples each chunk draws: they differ by at most one, none is empty, and their sum is `size`.

    With fewer examples than chunks there are `size` chunks of one.

    Raises:
        ValueError: if `n_chunks` is below 1.
    """
    if n_chunks < 1:
        raise ValueError(f"n_chunks must be at least 1, got {n_chunks}.")
    n_chunks = min(n_chunks, size)
    return [size // n_chunks + (chunk < size % n_chunks) for chunk in range(n_chunks)]


def draw_chunks(
    scores: PairwiseScores,
    size: int,
    n_chunks: int = 16,
    gain: float = 1.0,
    noise: Tensor | None = None,
    eligible: Tensor | None = None,
) -> Iterator[Chunk]:
    """Yield the chunks of a joint draw, one by one: [`select_jointly`] with what there is to log about each chunk.

    Takes and raises what [`select_jointly`] does; errors are raised when the first chunk is asked for.
    """
    diagonal = scores.diagonal().double()
    available = candidates(len(scores), size, gain, eligible, diagonal.device)
    sizes = chunk_sizes(size, n_chunks)
    if noise is None:
        # One number from the default generator, so that `torch.manual_seed` governs the draw.
        fresh_seed = int(torch.randint(2**63 - 1, ()))
        noise = gumbel_noise(fresh_seed, 0, len(sizes), len(scores), device=diagonal.device)
    else:
        noise = check_noise(noise, (n_chunks, len(scores)), diagonal.device)

    running = scores.start()
    drawn = None
    for chunk, chunk_size in enumerate(sizes):
        # Here and not after the draw: nobody is left to ask what the last chunk would add.
        if drawn is not None:
            running.add(drawn)
        log_weights = gain * (diagonal + running.total())
        check_finite(log_weights, available)
        drawn = top(log_weights + noise[chunk], available, chunk_size)
        yield Chunk(drawn, effective_sample_size(log_weights, available))
        available[drawn] = False


def select_jointly(
    scores: PairwiseScores,
    size: int,
    n_chunks: int = 16,
    gain: float = 1.0,
    noise: Tensor | None = None,
    eligible: Tensor | None = None,
) -> Tensor:
    """Draw a sub-batch jointly: Algorithm 1 of JEST (arXiv 2406.17711), in O(B b D) time and O(B) memory.

    Args:
        scores ([`PairwiseScores`]): Scores of the super-batch of B examples.
        size (`int`): Size of the sub-batch (b).
        n_chunks (`int`, *optional*, defaults to 16): Number of chunks (N). Chunk k draws ``b // N + (k < b % N)``
            examples; with b < N there are b chunks of one. 1 is independent selection by the diagonal.
        gain (`float`, *optional*, defaults to 1.0): Factor on the scores: above 1 the draw is greedier, below 1 more
            uniform. 1 is the paper's.
        noise (`torch.Tensor`, *optional*): Gumbel noise `[n_chunks, B]`, as from [`gumbel_noise`]; row k is that of
            chunk k, and makes the draw deterministic. By default fresh noise, seeded by torch's default generator.
        eligible (`torch.Tensor`, *optional*): bool `[B]`; the others are never drawn, and their scores may be NaN.

    Returns:
        `torch.Tensor`: Positions in the super-batch, int64 `[size]`, distinct, in order of drawing. Of equal keys the
        lowest position is drawn first.

    Raises:
        ValueError: if `size` is below 1 or above the number of eligible examples, `n_chunks` is below 1, `gain` is not
            positive and finite, `noise` or `eligible` has the wrong shape, or a score is NaN or infinite.
    """
    return torch.cat([chunk.indices for chunk in draw_chunks(scores, size, n_chunks, gain, noise, eligible)])


__all__ = ["Chunk", "chunk_sizes", "draw_chunks", "select_jointly"]
