# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Sampling without replacement by Gumbel-top-k, over ranks: the sampler of joint and of independent selection.

Adding independent Gumbel(0, 1) noise to log-weights and taking the k largest sums is the same as drawing k items one
after the other without replacement, with probabilities proportional to the weights (arXiv 1903.06059). This needs no
normaliser and no exponential, so scores of any size are safe.

The k largest sums of a super-batch are among the k largest of each rank's share. So one exchange of every rank's k
best candidates gives every rank the draw from the whole super-batch. One process alone runs the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from jest_hf.distributed import Ranks


_POSITIONS_SHOWN = 8


class Draw(NamedTuple):
    """Examples drawn from a super-batch, the same on every rank.

    Attributes:
        indices (`torch.Tensor`): Their positions in the global super-batch, int64 `[m]`, in order of drawing.
        owners (`torch.Tensor`): The rank that holds each of them, int64 `[m]`.
        effective_sample_size (`float`): 1 / sum p^2, with p the candidates' probabilities of being drawn first: the
            number of candidates if all are equally likely, 1 if one of them is certain.
    """

    indices: Tensor
    owners: Tensor
    effective_sample_size: float


class Candidates:
    """The examples of a super-batch that can still be drawn. Each rank holds those of its own share. A collective.

    Args:
        available (`torch.Tensor`): Which examples of this rank's share can be drawn, bool `[n]`. Every draw changes
            it.
        sizes (list of `int`): How many examples each draw will take, from all shares together.
        ranks ([`~jest_hf.distributed.Ranks`]): The ranks whose shares, in the order of ranks, make up the global
            super-batch.

    Attributes:
        start (`int`): Position of this rank's first example in the global super-batch.
        total (`int`): Size of the global super-batch (B).

    Raises:
        ValueError: on all ranks, if `sizes` differ between ranks or sum to more than the number of candidates.
    """

    def __init__(self, available: Tensor, sizes: list[int], ranks: Ranks) -> None:
        own = torch.tensor(
            [len(available), int(available.sum()), sum(sizes), len(sizes), sizes[0]], device=available.device
        )
        lengths, n_available, wanted, n_draws, first = ranks.gather(own).T.tolist()
        if len({*zip(wanted, n_draws, first, strict=True)}) > 1:
            raise ValueError(
                f"size, n_chunks and uniform_size must be the same on all ranks, got {wanted} in {n_draws} chunks, of "
                f"which the first have {first}."
            )
        self._available, self._ranks = available, ranks
        self._longest_share = max(lengths)
        self._n_left = sum(n_available)
        self.start: int = sum(lengths[: ranks.rank])
        self.total: int = sum(lengths)
        if wanted[0] > self._n_left:
            raise ValueError(f"size must be at most the number of eligible examples, {self._n_left}, got {wanted[0]}.")

    def draw(self, log_weights: Tensor, noise: Tensor, size: int) -> Draw:
        """Draw `size` candidates without replacement; they cannot be drawn again. A collective.

        The candidates with the largest sums of log-weight and noise are drawn; among equal sums, those at the lowest
        positions. Hence stable sorts: `torch.topk` promises no order among equals. A sort costs O(B log B), the scores
        cost O(B b D / N).

        Args:
            log_weights (`torch.Tensor`): Log-weights of this rank's share, float64 `[n]`.
            noise (`torch.Tensor`): Gumbel noise of this rank's share, `[n]`.
            size (`int`): Number of examples to draw from all shares together (m).

        Raises:
            ValueError: on all ranks, if the log-weight of a candidate is NaN or infinite.
        """
        log_weights = log_weights.masked_fill(~self._available, -torch.inf)
        offers = self._ranks.gather(self._offer(log_weights, noise, min(size, self._longest_share)))
        total, total_of_squares = offers[:, 0].logsumexp(dim=0).tolist()
        if math.isnan(total):
            self._raise_broken(log_weights)

        keys, positions = offers[:, 1:].unbind(dim=2)
        best = keys.flatten().sort(descending=True, stable=True).indices[:size]
        drawn = Draw(positions.flatten()[best].long(), best // keys.shape[1], math.exp(2 * total - total_of_squares))
        self._available[self._own(drawn)] = False
        self._n_left -= size
        return drawn

    def collect(self, drawn: Draw, take: Callable[[Tensor], Tensor]) -> Tensor:
        """Gather one row of numbers for each drawn example from the rank that holds the example. A collective.

        Args:
            drawn ([`Draw`]): The drawn examples.
            take (`Callable`): Maps positions within this rank's share, int64 `[k]`, to the rows of these, `[k, K]`.

        Returns:
            `torch.Tensor`: `[m, K]` in order of drawing, so that sums over the rows do not depend on the number of
            ranks.
        """
        counts = drawn.owners.bincount(minlength=self._ranks.size).tolist()
        rows = self._ranks.gather_rows(take(self._own(drawn)), counts)
        # The gathered rows are in the order of ranks, and the rows of one rank are in order of drawing.
        return rows[drawn.owners.argsort(stable=True).argsort()]

    def _own(self, drawn: Draw) -> Tensor:
        """Positions within this rank's share of the examples drawn from it, in order of drawing."""
        return drawn.indices[drawn.owners == self._ranks.rank] - self.start

    def _offer(self, log_weights: Tensor, noise: Tensor, size: int) -> Tensor:
        """What this rank contributes to a draw, float64 `[1 + size, 2]`.

        Row 0 has the logarithm of the sum of the weights, and that of the sum of their squares; both are NaN if a
        score of this rank is NaN or infinite. The other rows are the best candidates, each a key and a position.
        """
        # A share with fewer candidates is filled up with keys of minus infinity, which are never drawn. Positions are
        # exact in float64, as they stay far below 2**53.
        offer = log_weights.new_full((1 + size, 2), -torch.inf)
        offer[0] = torch.stack([log_weights, 2 * log_weights]).logsumexp(dim=1)
        offer[0].masked_fill_(self._broken(log_weights).any(), torch.nan)
        keys, order = (log_weights + noise).sort(descending=True, stable=True)
        offer[1 : 1 + len(keys), 0] = keys[:size]
        offer[1 : 1 + len(keys), 1] = self.start + order[:size].double()
        return offer

    def _broken(self, log_weights: Tensor) -> Tensor:
        return ~log_weights.isfinite() & self._available

    def _raise_broken(self, log_weights: Tensor) -> None:
        broken = self._broken(log_weights).nonzero().flatten() + self.start
        counts = self._ranks.gather_counts(len(broken), broken.device)
        positions = self._ranks.gather_rows(broken, counts).tolist()
        where = f"positions {_listed(positions)}"
        if self._ranks.size > 1:
            where += f"; held by rank {_listed([rank for rank, count in enumerate(counts) if count])}"
        raise ValueError(
            f"{len(positions)} of {self._n_left} candidates have a score that is NaN or infinite ({where}): "
            "correct these scores, or exclude the examples with eligible=."
        )


@contextmanager
def raised_on_all(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Raise a `ValueError` of any rank on every rank, so that no rank waits for one that has stopped. A collective."""
    message = b""
    try:
        yield
    except ValueError as error:
        if ranks.size == 1:
            raise
        message = str(error).encode()
    lengths = ranks.gather_counts(len(message), device)
    if any(lengths):
        encoded = torch.tensor(list(message), dtype=torch.uint8, device=device)
        messages = torch.split(ranks.gather_rows(encoded, lengths), lengths)
        failed = [rank for rank, length in enumerate(lengths) if length]
        raise ValueError(f"rank {_listed(failed)}: {bytes(messages[failed[0]].tolist()).decode()}")


def check_draw(size: int, gain: float) -> None:
    """Raise a `ValueError` if `size` is below 1, or `gain` is not positive and finite."""
    if not (math.isfinite(gain) and gain > 0):
        raise ValueError(f"gain must be a positive finite number, got {gain}.")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")


def check_eligible(eligible: Tensor | None, n_examples: int, device: torch.device) -> Tensor:
    """Return which examples can be drawn, a new bool `[n_examples]`; with `None`, all of them.

    Raises:
        ValueError: if `eligible` has another shape or dtype.
    """
    if eligible is None:
        return torch.ones(n_examples, dtype=torch.bool, device=device)
    if eligible.dtype != torch.bool or eligible.shape != (n_examples,):
        raise ValueError(
            f"eligible must be a bool tensor of shape [{n_examples}], got {eligible.dtype} {list(eligible.shape)}."
        )
    return eligible.to(device, copy=True)


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


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:_POSITIONS_SHOWN])) + (", ..." if len(numbers) > _POSITIONS_SHOWN else "")


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
        pointwise_scores (`torch.Tensor`): One score per example of the super-batch, `[B]`, of any floating dtype.
        size (`int`): Size of the sub-batch (b).
        noise (`torch.Tensor`, *optional*): Gumbel noise `[B]`, as one row of [`gumbel_noise`]. `None` is no noise: the
            `size` highest scores, as in RHO-LOSS (arXiv 2206.07137).
        gain (`float`, *optional*, defaults to 1.0): Factor on the scores.
        eligible (`torch.Tensor`, *optional*): bool `[B]`; the others are never drawn, and their scores may be NaN.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The ranks that draw together (a collective); by default
            this process alone. With several ranks the tensors are this rank's share of the super-batch, while `size`
            and the returned positions refer to the whole super-batch.

    Returns:
        `torch.Tensor`: Positions in the super-batch, int64 `[size]`, distinct, in order of drawing. Of equal keys the
        lowest position is drawn first.

    Raises:
        ValueError: if the scores are not `[B]`, `size` is below 1 or above the number of eligible examples, `gain` is
            not positive and finite, `noise` or `eligible` has the wrong shape, or a score is NaN or infinite.
            An error of one rank is raised on all.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.selection import gumbel_noise, select_independently
    >>> scores = torch.tensor([0.5, 2.0, -1.0, 2.0, 3.0])
    >>> select_independently(scores, 3)  # without noise: the three highest
    tensor([4, 1, 3])
    >>> select_independently(scores, 3, noise=gumbel_noise(seed=0, step=1, n_chunks=1, size=5)[0])
    tensor([3, 1, 4])

    ```
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
