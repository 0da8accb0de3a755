# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Drawing without replacement by Gumbel-top-k, over ranks: what joint and independent selection have in common.

Adding independent Gumbel(0, 1) noise to log-weights and taking the k largest is exactly drawing k items one after the
other without replacement with probabilities proportional to the weights (arXiv 1903.06059). It needs no normaliser
and no exponential, so scores of any size are safe.

It also splits well: whatever the shares, the k largest of all are among the k largest of each. So ranks that hold a
share each find the draw of the whole from one exchange of their k best, and one rank alone is no special case.
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
        effective_sample_size (`float`): 1 / sum p^2 for p the candidates' probabilities of being drawn first: how many
            of them competed.
    """

    indices: Tensor
    owners: Tensor
    effective_sample_size: float


class Candidates:
    """The examples of a super-batch that can still be drawn. Each rank knows those of its own share.

    Args:
        available (`torch.Tensor`): Who of this rank's share can be drawn, bool `[n]`; changed by every draw.
        sizes (list of `int`): How many examples each draw will take.
        ranks ([`~jest_hf.distributed.Ranks`]): Whose shares, in this order, are the global super-batch.

    Attributes:
        start (`int`): Position of this rank's first example in the global super-batch.
        total (`int`): Size of the global super-batch (B).

    Raises:
        ValueError: on all ranks, if they do not want to draw alike, or more than there are candidates.
    """

    def __init__(self, available: Tensor, sizes: list[int], ranks: Ranks) -> None:
        told = [len(available), int(available.sum()), sum(sizes), len(sizes), sizes[0]]
        told = ranks.gather(torch.tensor(told, device=available.device)).T.tolist()
        lengths, n_available, wanted, n_draws, first = told
        if len({*zip(wanted, n_draws, first, strict=True)}) > 1:
            raise ValueError(
                f"size, n_chunks and uniform_size must be the same on all ranks, got {wanted} in {n_draws} chunks, of "
                f"which the first have {first}."
            )
        self._available, self._ranks = available, ranks
        self._longest_share = max(lengths)
        self._n_left = sum(n_available)
        self.start = sum(lengths[: ranks.rank])
        self.total = sum(lengths)
        if wanted[0] > self._n_left:
            raise ValueError(f"size must be at most the number of eligible examples, {self._n_left}, got {wanted[0]}.")

    def draw(self, log_weights: Tensor, noise: Tensor, size: int) -> Draw:
        """Draw `size` candidates without replacement, and strike them off.

        The largest of log-weight plus noise are drawn; of equal ones, those at the lowest positions, by stable sorts:
        `torch.topk` promises no order among equals. A sort is O(B log B) beside the O(B b D / N) of the scores.

        Args:
            log_weights (`torch.Tensor`): Those of this rank's share, float64 `[n]`.
            noise (`torch.Tensor`): Gumbel noise for the share, `[n]`.
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
        """Collect what is to be known of the drawn examples from the ranks that hold them.

        Args:
            drawn ([`Draw`]): The examples.
            take (`Callable`): Positions within this rank's share, int64 `[k]` -> what others are to know, `[k, K]`.

        Returns:
            `torch.Tensor`: `[m, K]` in order of drawing, so that sums over it do not depend on the number of ranks.
        """
        counts = drawn.owners.bincount(minlength=self._ranks.size).tolist()
        rows = self._ranks.gather_rows(take(self._own(drawn)), counts)
        # They come by rank, and from each rank in order of drawing.
        return rows[drawn.owners.argsort(stable=True).argsort()]

    def _own(self, drawn: Draw) -> Tensor:
        """Positions within this rank's share of those drawn from it, in order of drawing."""
        return drawn.indices[drawn.owners == self._ranks.rank] - self.start

    def _offer(self, log_weights: Tensor, noise: Tensor, size: int) -> Tensor:
        """This rank's word in a draw, float64 `[1 + size, 2]`: the logarithms of the sums of its weights and of their
        squares, which are NaN to say that a score is broken; then its best candidates, each a key and a position.
        """
        # Who has fewer fills up with candidates that nobody draws. Positions are exact: they stay far below 2**53.
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
            "mend these examples, or leave them out with eligible=."
        )


@contextmanager
def raised_on_all(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Raise a `ValueError` of any rank on every rank: whoever raised alone would leave the others waiting."""
    complaint = b""
    try:
        yield
    except ValueError as error:
        if ranks.size == 1:
            raise
        complaint = str(error).encode()
    lengths = ranks.gather_counts(len(complaint), device)
    if any(lengths):
        words = torch.tensor(list(complaint), dtype=torch.uint8, device=device)
        complaints = ranks.gather_rows(words, lengths).split(lengths)
        unhappy = [rank for rank, length in enumerate(lengths) if length]
        raise ValueError(f"rank {_listed(unhappy)}: {bytes(complaints[unhappy[0]].tolist()).decode()}")


def check_draw(size: int, gain: float) -> None:
    """Raise a `ValueError` if `size` is below 1, or `gain` is not positive and finite."""
    if not (math.isfinite(gain) and gain > 0):
        raise ValueError(f"gain must be a positive finite number, got {gain}.")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")


def check_eligible(eligible: Tensor | None, n_examples: int, device: torch.device) -> Tensor:
    """Return who can be drawn, a fresh bool `[n_examples]`; `None` is everybody.

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
