# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Joint example selection: Algorithm 1 of JEST (arXiv 2406.17711), exactly, without the score matrix.

The sub-batch is drawn in chunks. The first chunk depends on the examples' own scores alone. Each further chunk also
depends on the scores of the candidates with the examples drawn before:

1. the log-weight of a candidate is ``gain * (d + conditional)``: the score of its own pair plus the conditional term;
2. a chunk is drawn from the log-weights without replacement, by Gumbel-top-k;
3. the conditional term is a running sum, updated with the rows and columns of the examples just drawn.

With several ranks, each keeps the running sums of its own candidates and receives the embeddings of the examples just
drawn. The result is the draw of one process with the whole super-batch. Time and memory fall with the number of ranks;
per chunk a rank receives at most b/N candidates from each other rank, and b/N embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from jest_hf.distributed import Ranks
from jest_hf.selection import arithmetic
from jest_hf.selection.draw import (
    Candidates,
    Draw,
    check_draw,
    check_eligible,
    check_noise,
    count_available,
    effective_sample_size,
    raised_on_all,
)
from jest_hf.selection.noise import gumbel_noise
from jest_hf.selection.scores import PairwiseScores


class Chunk(NamedTuple):
    """One chunk of a joint draw.

    Attributes:
        indices (`torch.Tensor`): Positions in the super-batch, int64, in order of drawing.
        effective_sample_size (`float`): 1 / sum p^2 over the remaining candidates, with p their probabilities of being
            drawn first in this chunk: near the number of candidates if the draw is nearly uniform, near 1 if it is
            greedy.
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
    ranks: Ranks | None = None,
    uniform_size: int = 0,
) -> Iterator[Chunk]:
    """Yield the chunks of a joint draw, with the effective sample size of each: [`select_jointly`] chunk by chunk.

    Arguments and errors are those of [`select_jointly`]. The iterator is lazy: it draws all chunks (a collective), and
    raises errors, when the first one is requested. The host waits for the device once before the first chunk and once
    after the last one; with several ranks also once in each chunk, for the sizes of an exchange.
    """
    ranks = Ranks() if ranks is None else ranks
    diagonal = scores.diagonal()
    device = diagonal.device
    diagonal = diagonal.to(arithmetic.wide_dtype(device))
    with raised_on_all(ranks, device):
        check_draw(size, gain)
        if not 0 <= uniform_size <= size:
            raise ValueError(f"uniform_size must be at least 0 and at most size={size}, got {uniform_size}.")
        sizes = [uniform_size] * (uniform_size > 0) + chunk_sizes(size - uniform_size, n_chunks)
        available = check_eligible(eligible, len(scores), device)
        if noise is not None:
            noise = check_noise(noise, (n_chunks + (uniform_size > 0), len(scores)), device)
        if ranks.size > 1 and not scores.divisible:
            raise ValueError(
                f"a score matrix cannot be divided among {ranks.size} ranks, as each rank would need all of its "
                "columns: pass ranks=None, or scores built by PairwiseScores.from_embeddings."
            )
        n_available = count_available(available, noise)
    candidates = Candidates(available, n_available, sizes, ranks)
    if noise is None:
        # One number from the default generator of rank 0, so that `torch.manual_seed` makes the draw repeatable.
        fresh_seed = ranks.gather_counts(int(torch.randint(2**63 - 1, ())), device)[0]
        start, stop = candidates.start, candidates.start + len(scores)
        noise = gumbel_noise(fresh_seed, 0, len(sizes), candidates.total, start=start, stop=stop, device=device)

    uniform = uniform_size > 0
    drawn = list(_draw(scores, diagonal, candidates, sizes, gain, noise, uniform))
    log_sums = torch.stack([draw.log_sums for draw in drawn]).tolist()
    if any(math.isnan(log_sum) for log_sum, _ in log_sums):
        # All ranks draw once more, now with a check of each chunk, to find out which scores are broken.
        candidates = Candidates(available, n_available, sizes, ranks, checks=True)
        list(_draw(scores, diagonal, candidates, sizes, gain, noise, uniform))
    for draw, sums in zip(drawn, log_sums, strict=True):
        yield Chunk(draw.indices, effective_sample_size(sums))


def _draw(
    scores: PairwiseScores,
    diagonal: Tensor,
    candidates: Candidates,
    sizes: list[int],
    gain: float,
    noise: Tensor,
    uniform: bool,
) -> Iterator[Draw]:
    """Draw the chunks. A host that calls a GPU never waits in here, unless there are several ranks. A collective."""
    running = scores.start()
    drawn = None
    # Chunk -1 is the uniform one: its noise is the last row.
    for chunk, chunk_size in enumerate(sizes, start=-1 if uniform else 0):
        # Here and not after the draw, which would compute terms after the last chunk that nothing uses.
        if drawn is not None:
            running.add(candidates.collect(drawn, scores.take))
        # A uniform chunk multiplies by 0, which keeps NaN and infinite scores visible to the check in `draw`.
        log_weights = gain * (diagonal + running.total()) if chunk >= 0 else 0 * diagonal
        drawn = candidates.draw(log_weights, noise[chunk], chunk_size)
        yield drawn


def select_jointly(
    scores: PairwiseScores,
    size: int,
    n_chunks: int = 16,
    gain: float = 1.0,
    noise: Tensor | None = None,
    eligible: Tensor | None = None,
    ranks: Ranks | None = None,
    uniform_size: int = 0,
) -> Tensor:
    """Draw a sub-batch jointly: Algorithm 1 of JEST (arXiv 2406.17711), in O(B b D) time and O(B) memory.

    Args:
        scores ([`PairwiseScores`]): Scores of a super-batch of B examples.
        size (`int`): Size of the sub-batch (b).
        n_chunks (`int`, *optional*, defaults to 16): Number of chunks (N). Chunk k draws ``b // N + (k < b % N)``
            examples; with b < N there are b chunks of one. `n_chunks=1` is independent selection by the diagonal.
        gain (`float`, *optional*, defaults to 1.0): Factor on the scores: above 1 the draw is greedier, below 1 more
            uniform. The paper uses 1.
        noise (`torch.Tensor`, *optional*): Gumbel noise `[n_chunks, B]`, as from [`gumbel_noise`], with row k for
            chunk k; the draw is then deterministic. By default new noise, seeded by torch's default generator.
        eligible (`torch.Tensor`, *optional*): bool `[B]`; examples with `False` are never drawn, and their scores may
            be NaN.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The ranks that draw together (a collective); by default
            this process alone. With several ranks, `scores`, `noise` and `eligible` are this rank's share of the
            super-batch, and the shares make up the super-batch in the order of ranks. All other arguments and the
            returned positions refer to the whole super-batch and are the same on every rank.
        uniform_size (`int`, *optional*, defaults to 0): Number of the `size` examples that are drawn first, uniformly,
            in a chunk of their own; the other chunks are drawn given these. `noise` then has one more row, the last,
            for this chunk.

    Returns:
        `torch.Tensor`: Positions in the super-batch, int64 `[size]`, distinct, in order of drawing. Of equal keys the
        lowest position is drawn first.

    Raises:
        ValueError: if `size` is below 1 or above the number of eligible examples, `n_chunks` is below 1, `gain` is not
            positive and finite, `noise` or `eligible` has the wrong shape, `uniform_size` is below 0 or above `size`,
            or a score is NaN or infinite; also for a score matrix with several ranks. An error of one rank is raised
            on all.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.selection import PairwiseScores, gumbel_noise, select_jointly
    >>> scores = PairwiseScores.from_matrix(torch.tensor([[5.0, 9.0, 0.0], [9.0, 1.0, 0.0], [0.0, 0.0, 4.0]]))
    >>> noise = torch.zeros(2, 3)  # greedy; gumbel_noise(seed, step, n_chunks=2, size=3) samples
    >>> select_jointly(scores, size=2, n_chunks=2, noise=noise)  # example 1 scores high together with example 0
    tensor([0, 1])

    ```
    """
    chunks = draw_chunks(scores, size, n_chunks, gain, noise, eligible, ranks, uniform_size)
    return torch.cat([chunk.indices for chunk in chunks])


__all__ = ["Chunk", "chunk_sizes", "draw_chunks", "select_jointly"]
