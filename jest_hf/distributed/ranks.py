# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The processes that share a super-batch, and their collectives.

Selection, losses and the exchange of examples are written once, in terms of `Ranks`. In a group of one process every
method returns its argument without a copy, so no other code depends on the number of processes.

Every method but `world` is a collective: all ranks must call it, in the same order. No method is differentiable: the
losses compute their gradients themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes of a group, seen from one of them.

    Args:
        group (`torch.distributed.ProcessGroup`, *optional*): The group; `None` is this process alone. For the default
            group see [`Ranks.world`].

    Attributes:
        rank (`int`): This process's place in the group.
        size (`int`): Number of processes (W).
        bytes_received (`int`): Bytes of payload that this rank has received from other ranks so far.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.distributed import Ranks
    >>> ranks = Ranks()
    >>> ranks
    Ranks(rank=0, size=1)
    >>> ranks.gather(torch.tensor([3, 4]))
    tensor([[3, 4]])

    ```
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.bytes_received = 0

    @classmethod
    def world(cls) -> Ranks:
        """Return all processes of the job: the default group, or this process alone if there is no default group."""
        return cls(dist.group.WORLD if dist.is_available() and dist.is_initialized() else None)

    def gather(self, value: Tensor) -> Tensor:
        """Return the values of all ranks, of one shape and dtype, as `[W, ...]`. A collective."""
        if self.size == 1:
            return value[None]
        gathered = value.new_empty((self.size, *value.shape))
        # The plain list form: the single-tensor one changes its name between the torch versions that we support.
        dist.all_gather(list(gathered.unbind()), value.contiguous(), group=self.group)
        self.bytes_received += (self.size - 1) * value.nbytes
        return gathered

    def gather_counts(self, count: int, device: torch.device | str = "cpu") -> list[int]:
        """Return a whole number of every rank, in the order of ranks. A collective."""
        return [numbers[0] for numbers in self.gather_numbers([count], device)]

    def gather_numbers(self, numbers: Sequence[int], device: torch.device | str = "cpu") -> list[list[int]]:
        """Return as many whole numbers of every rank, in the order of ranks. A collective.

        A process alone gets its own numbers back, without a copy to the device, for which the host would wait.
        """
        if self.size == 1:
            return [list(numbers)]
        rows: list[list[int]] = self.gather(torch.tensor(numbers, device=device)).tolist()
        return rows

    def gather_rows(self, rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return the rows of all ranks, in the order of ranks: `[sum(counts), ...]`. A collective.

        Args:
            rows (`torch.Tensor`): This rank's `[n, ...]`; n may differ between ranks, the rest of the shape may not.
            counts (sequence of `int`, *optional*): Number of rows of every rank. By default they are gathered first.
        """
        if self.size == 1:
            return rows
        counts = self.gather_counts(len(rows), rows.device) if counts is None else list(counts)
        if len(set(counts)) == 1:
            return self.gather(rows).flatten(0, 1)
        return self.route(rows.repeat(self.size, *[1] * (rows.ndim - 1)), [len(rows)] * self.size, counts)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of `value` over all ranks, the same on every rank. A collective."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self.group)
        # The traffic of a ring all-reduce.
        self.bytes_received += 2 * (self.size - 1) * value.nbytes // self.size
        return total

    def route(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send the first `sent[0]` rows to rank 0, the next `sent[1]` to rank 1, and so on. A collective.

        Args:
            rows (`torch.Tensor`): `[sum(sent), ...]`.
            sent (sequence of `int`): Number of rows for each rank.
            received (sequence of `int`): Number of rows from each rank, equal to what each of them sends to this one.

        Returns:
            `torch.Tensor`: `[sum(received), ...]`, in the order of the ranks they come from.
        """
        if self.size == 1:
            return rows
        arrived = rows.new_empty((sum(received), *rows.shape[1:]))
        dist.all_to_all_single(arrived, rows.contiguous(), list(received), list(sent), group=self.group)
        row_bytes = rows[:1].nbytes if len(rows) else arrived[:1].nbytes
        self.bytes_received += (sum(received) - received[self.rank]) * row_bytes
        return arrived

    def rotate(self, rows: Tensor) -> Tensor:
        """Send `rows` to the next rank and return those of the previous one, of the same shape. A collective."""
        if self.size == 1:
            return rows
        n = len(rows)
        sent, received = [0] * self.size, [0] * self.size
        sent[(self.rank + 1) % self.size] = received[(self.rank - 1) % self.size] = n
        return self.route(rows, sent, received)

    def __repr__(self) -> str:
        return f"Ranks(rank={self.rank}, size={self.size})"


__all__ = ["Ranks"]
