# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Joint example selection: Algorithm 1 of JEST (arXiv 2406.17711), exactly, without the score matrix.

The sub-batch is drawn in chunks. The first chunk is drawn by the examples' own scores; each further one also by how
the candidates score together with everything drawn before:

1. the log-weight of a candidate is ``gain * (d + conditional)``: its own pair's score and the conditional term;
2. the chunk is drawn from these without replacement, by Gumbel-top-k;
3. the conditional term is a running sum, and meets the rows and columns of the examples just drawn, and nothing else.

Over ranks, each keeps the running sums of its own candidates and learns the embeddings of the examples just drawn: the
draw is that of one process with the whole super-batch, time and memory fall with the number of ranks, and per chunk
a rank receives at most b/N candidates from each other rank and b/N embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from jest_hf.distributed import Ranks
from jest_hf.selection.draw import Candidates, check_draw, check_eligible, check_noise, raised_on_all
from jest_hf.selection.noise import gumbel_noise
from jest_hf.selection.scores import PairwiseScores


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
    ranks: Ranks | None = None,
    uniform_size: int = 0,
) -> Iterator[Chunk]:
    """Yield the chunks of a joint draw, one by one: [`select_jointly`] with what there is to log about each chunk.

    Takes and raises what [`select_jointly`] does; errors are raised when the first chunk is asked for. Each chunk is
    drawn when it is asked for, by all ranks together.
    """
    ranks = Ranks() if ranks is None else ranks
    diagonal = scores.diagonal().double()
    device = diagonal.device
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
                f"a score matrix cannot be divided among {ranks.size} ranks, as each would need all of its columns: "
                "select alone, with ranks=None, or score by from_embeddings."
            )
    candidates = Candidates(available, sizes, ranks)
    if noise is None:
        # One number from the default generator, so that `torch.manual_seed` governs the draw: rank 0's for all.
        fresh_seed = ranks.gather_counts(int(torch.randint(2**63 - 1, ())), device)[0]
        start, stop = candidates.start, candidates.start + len(scores)
        noise = gumbel_noise(fresh_seed, 0, len(sizes), candidates.total, start=start, stop=stop, device=device)

    running = scores.start()
    drawn = None
    # Chunk -1 is the uniform one, and row -1 of the noise the last.
    for chunk, chunk_size in enumerate(sizes, start=-1 if uniform_size else 0):
        # Here and not after the draw: nobody is left to ask what the last chunk would add.
        if drawn is not None:
            running.add(candidates.collect(drawn, scores.take))
        # Weights that are all equal still show which score is broken.
        log_weights = gain * (diagonal + running.total()) if chunk >= 0 else 0 * diagonal
        drawn = candidates.draw(log_weights, noise[chunk], chunk_size)
        yield Chunk(drawn.indices, drawn.effective_sample_size)


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
        scores ([`PairwiseScores`]): Scores of the super-batch of B examples.
        size (`int`): Size of the sub-batch (b).
        n_chunks (`int`, *optional*, defaults to 16): Number of chunks (N). Chunk k draws ``b // N + (k < b % N)``
            examples; with b < N there are b chunks of one. 1 is independent selection by the diagonal.
        gain (`float`, *optional*, defaults to 1.0): Factor on the scores: above 1 the draw is greedier, below 1 more
            uniform. 1 is the paper's.
        noise (`torch.Tensor`, *optional*): Gumbel noise `[n_chunks, B]`, as from [`gumbel_noise`]; row k is that of
            chunk k, and makes the draw deterministic. By default fresh noise, seeded by torch's default generator.
        eligible (`torch.Tensor`, *optional*): bool `[B]`; the others are never drawn, and their scores may be NaN.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): Who draws together; by default this process alone. Then
            `scores`, `noise` and `eligible` are this rank's share of the super-batch, which the shares make up in the
            order of the ranks; all else, `size` and the indices too, is about the whole and the same on every rank.
        uniform_size (`int`, *optional*, defaults to 0): So many of the `size` examples are drawn first and uniformly,
            in a chunk before the others, which are drawn given these. `noise` then has a row more, the last, for it.

    Returns:
        `torch.Tensor`: Positions in the super-batch, int64 `[size]`, distinct, in order of drawing. Of equal keys the
        lowest position is drawn first.

    Raises:
        ValueError: if `size` is below 1 or above the number of eligible examples, `n_chunks` is below 1, `gain` is not
            positive and finite, `noise` or `eligible` has the wrong shape, `uniform_size` is below 0 or above `size`,
            or a score is NaN or infinite. Also if several ranks are to share a score matrix. Whatever is wrong on one
            rank is raised on all.
    """
    chunks = draw_chunks(scores, size, n_chunks, gain, noise, eligible, ranks, uniform_size)
    return torch.cat([chunk.indices for chunk in chunks])


__all__ = ["Chunk", "chunk_sizes", "draw_chunks", "select_jointly"]
