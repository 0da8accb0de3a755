# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The selection of one training step, over all ranks: draw the sub-batch from what the models say, and take it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jest_hf.batch import Scored
from jest_hf.distributed import Exchanged, Shares, exchange, owners_of, quotas


def take_readable(super_batch: dict[str, Tensor], shares: Shares) -> Exchanged:
    """This rank's part of all rows that can be read; without a copy, which for the images alone can cost a per cent of
    a small model's step, where that is every row."""
    valid = super_batch["valid"]
    if shares.readable == shares.rows:
        order = torch.arange(shares.start, shares.start + len(valid), device=valid.device)
        return Exchanged(super_batch, order, moved=0, bytes_moved=0)
    return exchange(shares.ranks, super_batch, shares.positions(valid), shares.rows)


def take_sub_batch(
    shares: Shares, super_batch: dict[str, Tensor], embeddings: Mapping[str, Scored], indices: Tensor
) -> tuple[Exchanged, dict[str, dict[str, Scored]]]:
    """
    This rank's part of the sub-batch, and how it was scored beside as many rejected examples.

    Args:
        shares ([`~jest_hf.distributed.Shares`]): How the super-batch lies over the ranks.
        super_batch (`dict`): This rank's rows.
        embeddings (`dict`): What the models say of them.
        indices (`torch.Tensor`): The sub-batch, int64 `[b]`, positions in the super-batch, the same on every rank.

    Returns:
        The rows, and by `"selected"` and `"rejected"` what the models say of them. The rejected ones are the first of
        each share, whose order is random. Where some rank does not have so many they are left out: losses of batches
        of other sizes do not compare.
    """
    # What is known of the examples travels with them.
    taken = exchange(shares.ranks, {**super_batch, **_packed(embeddings)}, indices, shares.rows)
    parts = {"selected": _unpacked(taken.batch, embeddings)}
    drawn = torch.bincount(owners_of(indices, shares.rows), minlength=shares.ranks.size).tolist()
    spare = [readable - m for readable, m in zip(shares.readable, drawn, strict=True)]
    if all(n >= q for n, q in zip(spare, quotas(len(indices), shares.ranks.size), strict=True)):
        rest = super_batch["valid"].clone()
        rest[shares.own(indices)] = False
        rejected = rest.nonzero().flatten()[: len(taken.order)]
        parts["rejected"] = {name: scored.take(rejected) for name, scored in embeddings.items()}
    return taken, parts


def take_scored(shares: Shares, embeddings: Mapping[str, Scored], indices: Tensor) -> dict[str, Scored]:
    """This rank's part of what the models say of some examples, in parts as equal as those of a sub-batch; arguments
    as those of [`take_sub_batch`]. A collective."""
    return _unpacked(exchange(shares.ranks, _packed(embeddings), indices, shares.rows).batch, embeddings)


def _packed(embeddings: Mapping[str, Scored]) -> dict[str, Tensor]:
    return {f"{name}/{key}": rows for name, scored in embeddings.items() for key, rows in scored.columns().items()}


def _unpacked(rows: dict[str, Tensor], embeddings: Mapping[str, Scored]) -> dict[str, Scored]:
    """What the models say of other rows of [`_packed`], which are taken out of `rows`."""
    return {
        name: scored.with_columns({key: rows.pop(f"{name}/{key}") for key in scored.columns()})
        for name, scored in embeddings.items()
    }


__all__ = ["take_readable", "take_scored", "take_sub_batch"]
