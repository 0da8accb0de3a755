# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Turn a global selection into equal sub-batches: move surplus examples to the ranks that have too few.

A global selection takes the best examples of all ranks, so the ranks own unequal numbers of selected examples, while
every rank must train on the same number. An example stays on the rank that loaded it as long as the quota of that rank
is not used up. Only the surplus moves, in one all-to-all; all tensors of an example are packed into one row of bytes.

Every rank computes the same plan from the selection, so the ranks exchange no messages about the plan.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jest_hf.distributed.gather import gather_objects
from jest_hf.distributed.ranks import Ranks
from jest_hf.distributed.shares import owners_of


Layout = dict[str, tuple[str, list[int]]]  # dtype and shape of one row, by key of the super-batch


@dataclass(frozen=True)
class Exchanged:
    """The rows that one rank trains on.

    Args:
        batch (`dict[str, torch.Tensor]`): This rank's sub-batch, in order of drawing.
        order (`torch.Tensor`): int64 `[n_r]`, ascending: the place of each row in the order of drawing of all ranks.
        moved (`int`): Number of examples that changed ranks, summed over all ranks.
        bytes_moved (`int`): Size of these examples in bytes, summed over all ranks.
    """

    batch: dict[str, Tensor]
    order: Tensor
    moved: int
    bytes_moved: int


def quotas(n: int, world_size: int) -> list[int]:
    """Return how many of n examples each rank trains on: `n // world_size`, and the first `n % world_size` ranks one
        more.

    Example:

    ```python
    >>> from jest_hf.distributed import quotas
    >>> quotas(10, world_size=4)
    [3, 3, 2, 2]

    ```
    """
    return [n // world_size + (rank < n % world_size) for rank in range(world_size)]


def plan_exchange(owners: Tensor, world_size: int) -> Tensor:
    """Decide which rank trains on which selected example.

    Every rank gets the number of examples in [`quotas`]. In order of drawing, an example stays with its owner until
    the owner's quota is used up; the other examples go to the ranks with too few, in the order of ranks. No plan moves
    fewer examples.

    Args:
        owners (`torch.Tensor`): int64 `[n]`: the rank that holds each selected example, in order of drawing.
        world_size (`int`): Number of ranks.

    Returns:
        `torch.Tensor`: int64 `[n]`: the rank that trains on each example.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.distributed import plan_exchange
    >>> plan_exchange(torch.tensor([0, 0, 1, 0]), world_size=2)  # rank 0 has one too many: the last drawn moves
    tensor([0, 0, 1, 1])

    ```
    """
    room = torch.tensor(quotas(len(owners), world_size))
    # For each example: how many examples of the same owner were drawn before it.
    by_owner = owners.argsort(stable=True)
    counts = owners.bincount(minlength=world_size)
    before = torch.empty_like(owners)
    before[by_owner] = torch.arange(len(owners)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    destinations = owners.clone()
    deficits = (room - counts).clamp(min=0)
    destinations[before >= room[owners]] = torch.arange(world_size).repeat_interleave(deficits)
    return destinations


def exchange(
    ranks: Ranks, super_batch: Mapping[str, Tensor], indices: Tensor, counts: Sequence[int] | None = None
) -> Exchanged:
    """Return this rank's sub-batch of a global selection. A collective.

    Args:
        ranks ([`Ranks`]): The ranks that share the super-batch.
        super_batch (`Mapping[str, torch.Tensor]`): This rank's share, all on one device, `[rows, ...]` of any dtype.
            The number of rows may differ between ranks.
        indices (`torch.Tensor`): int64 `[n]`, the same on every rank: the selected positions of the global super-batch
            (the shares in the order of ranks), in order of drawing.
        counts (sequence of `int`, *optional*): Number of rows of every rank. By default they are gathered first.

    Returns:
        [`Exchanged`]: as many rows as [`quotas`] gives this rank.

    Raises:
        ValueError: on all ranks, if there are fewer examples than ranks, or if the rows of the ranks differ in keys,
            dtypes or shapes.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.distributed import Ranks, exchange
    >>> taken = exchange(Ranks(), {"example_id": torch.arange(100, 105)}, indices=torch.tensor([3, 0]))
    >>> taken.batch["example_id"], taken.moved
    (tensor([103, 100]), 0)

    ```
    """
    n = len(indices)
    if n < ranks.size:
        raise ValueError(
            f"{n} selected examples are too few for {ranks.size} ranks: raise per_device_train_batch_size, or check "
            "that the rows of the super-batch can be read."
        )
    if ranks.size == 1:
        batch = {name: value.index_select(0, indices) for name, value in super_batch.items()}
        return Exchanged(batch, torch.arange(n, device=indices.device), moved=0, bytes_moved=0)

    device = indices.device
    _check_layout(ranks, super_batch, device)
    counts = ranks.gather_counts(len(next(iter(super_batch.values()))), device) if counts is None else counts
    # On the CPU, because an all-to-all takes its counts from the host.
    indices = indices.cpu()
    owners = owners_of(indices, counts)
    destinations = plan_exchange(owners, ranks.size)

    # Rows that stay on this rank are packed as well: one more copy, but one code path.
    leaving = _grouped((owners == ranks.rank).nonzero().flatten(), destinations)
    coming = _grouped((destinations == ranks.rank).nonzero().flatten(), owners)
    sent = destinations[leaving].bincount(minlength=ranks.size).tolist()
    received = owners[coming].bincount(minlength=ranks.size).tolist()
    packed = _pack(super_batch, indices[leaving] - sum(counts[: ranks.rank]))
    arrived = _unpack(ranks.route(packed, sent, received), super_batch)

    order, as_drawn = coming.sort()
    batch = {name: _take(arrived[name], as_drawn) for name in super_batch}
    moved = int((owners != destinations).sum())
    return Exchanged(batch, order.to(device), moved, moved * packed.shape[1])


def _check_layout(ranks: Ranks, super_batch: Mapping[str, Tensor], device: torch.device) -> None:
    """Raise a `ValueError` on all ranks if rows differ in keys, dtypes or shapes. A collective.

    Packed rows are plain bytes, so a difference would go unnoticed.
    """
    layout: Layout = {name: (str(value.dtype), list(value.shape[1:])) for name, value in sorted(super_batch.items())}
    digest = hashlib.blake2b(repr(layout).encode(), digest_size=8).digest()
    fingerprint = int.from_bytes(digest, "little", signed=True)
    if len(set(ranks.gather_counts(fingerprint, device))) > 1:  # the same on all ranks
        layouts = gather_objects(ranks, layout, device)
        other = next(rank for rank, layout in enumerate(layouts) if layout != layouts[0])
        name = next(
            name for name in {**layouts[0], **layouts[other]} if layouts[0].get(name) != layouts[other].get(name)
        )
        raise ValueError(
            f"the rows of {name!r} are {_describe(layouts[0], name)} on rank 0 and {_describe(layouts[other], name)} "
            f"on rank {other}, and rows that differ in this way cannot change ranks: let the data collator pad to a "
            "fixed length, or set selection_scope='local'."
        )


def _describe(layout: Layout, name: str) -> str:
    if name not in layout:
        return "absent"
    dtype, shape = layout[name]
    return f"{dtype} {shape}"


def _grouped(places: Tensor, ranks: Tensor) -> Tensor:
    """Sort places in the order of drawing by their rank; those of one rank keep their order."""
    return places[ranks[places].argsort(stable=True)]


def _take(value: Tensor, rows: Tensor) -> Tensor:
    return value.index_select(0, rows.to(value.device))


def _as_bytes(rows: Tensor) -> Tensor:
    """View a contiguous `[m, ...]` as uint8 `[m, bytes of a row]`."""
    return rows.view(len(rows), math.prod(rows.shape[1:])).view(torch.uint8)


def _pack(batch: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """Concatenate these rows of all tensors, sorted by name, as the order of the keys may differ between ranks."""
    return torch.cat([_as_bytes(_take(value, rows)) for _, value in sorted(batch.items())], dim=1)


def _unpack(packed: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo [`_pack`]; `like` gives the names, the dtypes and the shapes of the rows."""
    batch = {name: value.new_empty((len(packed), *value.shape[1:])) for name, value in sorted(like.items())}
    targets = [_as_bytes(rows) for rows in batch.values()]
    parts = torch.split(packed, [target.shape[1] for target in targets], dim=1)
    for target, part in zip(targets, parts, strict=True):
        target.copy_(part)
    return batch


__all__ = ["Exchanged", "exchange", "plan_exchange", "quotas"]
