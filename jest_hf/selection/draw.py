# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Sampling without replacement by Gumbel-top-k, over ranks: the sampler of joint and of independent selection.

Adding independent Gumbel(0, 1) noise to log-weights and taking the k largest sums is the same as drawing k items one
after the other without replacement, with probabilities proportional to the weights (arXiv 1903.06059). This needs no
normaliser and no exponential, so scores of any size are safe.

The k largest sums of a super-batch are among the k largest of each rank's share. So one exchange of every rank's k
best candidates gives every rank the draw from the whole super-batch. One process alone draws from its own candidates.

A host that reads a number from a GPU waits until all work before that number is done. So a draw reads nothing: shapes
depend on no data, and whether a score is NaN is read once, after the last draw ([`Draw.log_sums`]). Only ranks that
exchange embeddings read how many each of them sends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from jest_hf.distributed import Ranks
from jest_hf.selection import arithmetic


_POSITIONS_SHOWN = 8


class Draw(NamedTuple):
    """Examples drawn from a super-batch, the same on every rank.

    Attributes:
        indices (`torch.Tensor`): Their positions in the global super-batch, int64 `[m]`, in order of drawing.
        owners (`torch.Tensor`, *optional*): The rank that holds each of them, int64 `[m]`; `None` with one rank.
        log_sums (`torch.Tensor`): The logarithms of the sum of the candidates' weights and of the sum of their
            squares, `[2]`, on the device of the weights. Both are NaN if the log-weight of a candidate is NaN or
            infinite; what is drawn then means nothing.
    """

    indices: Tensor
    owners: Tensor | None
    log_sums: Tensor


def effective_sample_size(log_sums: list[float]) -> float:
    """Return 1 / sum p^2, with p the candidates' probabilities of being drawn first, given [`Draw.log_sums`].

    The number of candidates if all are equally likely, 1 if one of them is certain.
    """
    log_sum, log_sum_of_squares = log_sums
    return math.exp(2 * log_sum - log_sum_of_squares)


class Candidates:
    """The examples of a super-batch that can still be drawn. Each rank holds those of its own share. A collective.

    Args:
        available (`torch.Tensor`): Which examples of this rank's share can be drawn, bool `[n]`.
        n_available (`int`): How many these are.
        sizes (list of `int`): How many examples each draw will take, from all shares together.
        ranks ([`~jest_hf.distributed.Ranks`]): The ranks whose shares, in the order of ranks, make up the global
            super-batch.
        checks (`bool`, *optional*, defaults to `False`): Whether each draw raises an error for broken log-weights, for
            which the host waits. By default [`Draw.log_sums`] marks such a draw.

    Attributes:
        start (`int`): Position of this rank's first example in the global super-batch.
        total (`int`): Size of the global super-batch (B).

    Raises:
        ValueError: on all ranks, if `sizes` differ between ranks or sum to more than the number of candidates.
    """

    def __init__(
        self, available: Tensor, n_available: int, sizes: list[int], ranks: Ranks, checks: bool = False
    ) -> None:
        own = [len(available), n_available, sum(sizes), len(sizes), sizes[0]]
        lengths, counts, wanted, n_draws, first = map(
            list, zip(*ranks.gather_numbers(own, available.device), strict=True)
        )
        if len({*zip(wanted, n_draws, first, strict=True)}) > 1:
            raise ValueError(
                f"size, n_chunks and uniform_size must be the same on all ranks, got {wanted} in {n_draws} chunks, of "
                f"which the first have {first}."
            )
        self._ranks, self._checks = ranks, checks
        self._longest_share = max(lengths)
        self._n_left = sum(counts)
        self.start: int = sum(lengths[: ranks.rank])
        self.total: int = sum(lengths)
        if wanted[0] > self._n_left:
            raise ValueError(f"size must be at most the number of eligible examples, {self._n_left}, got {wanted[0]}.")
        # The last place stands for the examples of all other ranks, so that marking what is drawn has a fixed size.
        self._places = torch.cat([~available, available.new_zeros(1)])
        self._barred = self._places[:-1]

    def draw(self, log_weights: Tensor, noise: Tensor, size: int) -> Draw:
        """Draw `size` candidates without replacement; they cannot be drawn again. A collective.

        The candidates with the largest sums of log-weight and noise are drawn; among equal sums, those at the lowest
        positions. Hence stable sorts: `torch.topk` promises no order among equals. A sort costs O(B log B), the scores
        cost O(B b D / N).

        Args:
            log_weights (`torch.Tensor`): Log-weights of this rank's share, float64 `[n]` (float32 on MPS).
            noise (`torch.Tensor`): Gumbel noise of this rank's share, `[n]`.
            size (`int`): Number of examples to draw from all shares together (m).

        Raises:
            ValueError: with `checks`, on all ranks, if the log-weight of a candidate is NaN or infinite.
        """
        weights = log_weights.masked_fill(self._barred, -torch.inf)
        log_sums = torch.stack([weights, 2 * weights]).logsumexp(dim=1)
        # The difference of a number and itself is NaN if the number is NaN or infinite, and else 0.
        log_sums += (log_weights - log_weights).masked_fill_(self._barred, 0).sum()
        keys, order = (weights + noise).sort(descending=True, stable=True)
        if self._ranks.size == 1:
            drawn = Draw(order[:size].clone(), None, log_sums)  # a view would keep all of `order`
        else:
            drawn = self._best(log_sums, keys, order, size)
        if self._checks and math.isnan(drawn.log_sums[0].item()):
            self._raise_broken(log_weights)
        self._places.index_fill_(0, self._place(drawn), True)
        self._n_left -= size
        return drawn

    def _best(self, log_sums: Tensor, keys: Tensor, order: Tensor, size: int) -> Draw:
        """The `size` best of all ranks' candidates, given those of this rank by descending key. A collective."""
        # Row 0 has the sums, the others have the best candidates, each a key and a position. A share with fewer
        # candidates is filled up with keys of minus infinity, which are never drawn. Positions are exact, as they stay
        # far below 2**53 (on MPS, a device without ranks, 2**24).
        kept = min(size, self._longest_share)
        offer = keys.new_full((1 + kept, 2), -torch.inf)
        offer[0] = log_sums
        offer[1 : 1 + len(keys), 0] = keys[:kept]
        offer[1 : 1 + len(keys), 1] = (self.start + order[:kept]).to(keys.dtype)
        offers = self._ranks.gather(offer)
        keys, positions = offers[:, 1:].unbind(dim=2)
        best = keys.flatten().sort(descending=True, stable=True).indices[:size]
        return Draw(positions.flatten()[best].long(), best // kept, offers[:, 0].logsumexp(dim=0))

    def collect(self, drawn: Draw, take: Callable[[Tensor], Tensor]) -> Tensor:
        """Gather one row of numbers for each drawn example from the rank that holds the example. A collective.

        Args:
            drawn ([`Draw`]): The drawn examples.
            take (`Callable`): Maps positions within this rank's share, int64 `[k]`, to the rows of these, `[k, K]`.

        Returns:
            `torch.Tensor`: `[m, K]` in order of drawing, so that sums over the rows do not depend on the number of
            ranks.
        """
        if drawn.owners is None:
            return take(drawn.indices)
        numbers = torch.arange(self._ranks.size, device=drawn.owners.device)
        counts = (drawn.owners == numbers[:, None]).sum(dim=1).tolist()  # what an exchange needs on the host
        by_owner = drawn.owners.argsort(stable=True)
        before = sum(counts[: self._ranks.rank])
        own = drawn.indices[by_owner[before : before + counts[self._ranks.rank]]] - self.start
        # The gathered rows are in the order of ranks, and the rows of one rank are in order of drawing.
        return self._ranks.gather_rows(take(own), counts)[by_owner.argsort(stable=True)]

    def _place(self, drawn: Draw) -> Tensor:
        """The place of each drawn example within this rank's share; the last place for those of other ranks."""
        if drawn.owners is None:
            return drawn.indices
        return torch.where(drawn.owners == self._ranks.rank, drawn.indices - self.start, len(self._barred))

    def _raise_broken(self, log_weights: Tensor) -> None:
        broken = (~log_weights.isfinite() & ~self._barred).nonzero().flatten() + self.start
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
        ValueError: if it has another shape.
    """
    if noise.shape != shape:
        raise ValueError(f"noise must have shape {list(shape)}, got {list(noise.shape)}.")
    return noise.to(device)


def count_available(available: Tensor, noise: Tensor | None) -> int:
    """Return how many examples can be drawn. The host waits once, for this number and for a check of the noise.

    Raises:
        ValueError: if a value of the noise is not finite.
    """
    if noise is None:
        return int(available.sum())
    n_available, is_finite = torch.stack([available.sum(), noise.isfinite().all()]).tolist()
    if not is_finite:
        raise ValueError("noise must be finite: use gumbel_noise(seed, step, n_chunks, size).")
    return int(n_available)


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
        n_available = count_available(available, noise)
    log_weights = gain * pointwise_scores.detach().to(arithmetic.wide_dtype(device))
    return Candidates(available, n_available, [size], ranks, checks=True).draw(log_weights, noise, size).indices


def select_uniformly(noise: Tensor, size: int, eligible: Tensor | None = None) -> Tensor:
    """Draw `size` of B examples uniformly without replacement, given Gumbel `noise` `[B]`; int64 `[size]`."""
    return select_independently(torch.zeros_like(noise), size, noise, eligible=eligible)
