# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Take the rows of a selected sub-batch, and what the models computed of them, over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from jest_hf.batch import Scored
from jest_hf.distributed import Exchanged, Shares, exchange, owners_of, quotas


def take_readable(super_batch: dict[str, Tensor], shares: Shares) -> Exchanged:
    """Return this rank's part of all readable rows, in equal parts. A collective if some row is broken.

    If every row is readable there is no copy: copying the images alone can take 1 % of a small model's step.
    """
    valid = super_batch["valid"]
    if shares.readable == shares.rows:
        order = torch.arange(shares.start, shares.start + len(valid), device=valid.device)
        return Exchanged(super_batch, order, moved=0, bytes_moved=0)
    return exchange(shares.ranks, super_batch, shares.positions(valid), shares.rows)


def take_drawn(rows: dict[str, Tensor], shares: Shares, order: Tensor, chosen: Tensor) -> Exchanged:
    """Return this rank's part of rows that were drawn before they were loaded. A collective if rows move.

    Args:
        rows (`dict`): The m rows that this rank has loaded.
        shares ([`~jest_hf.distributed.Shares`]): How the drawn rows are spread over the ranks.
        order (`torch.Tensor`): The place in the order of drawing of each row, int64 `[b]`, of the rows of all ranks in
            the order of ranks.
        chosen (`torch.Tensor`): Which rows of this rank to take, bool `[m]`.

    Returns:
        [`~jest_hf.distributed.Exchanged`]: the taken rows of all ranks in equal parts, in order of drawing. Without a
        copy, if every rank has loaded its part and all rows are taken.
    """
    order = order.to(chosen.device)
    if shares.readable == shares.rows == quotas(len(order), shares.ranks.size):
        return Exchanged(rows, order[shares.start : shares.start + len(chosen)], moved=0, bytes_moved=0)
    positions = shares.positions(chosen)
    positions = positions[order[positions].argsort()]
    taken = exchange(shares.ranks, rows, positions, shares.rows)
    return replace(taken, order=order[positions][taken.order])


def take_sub_batch(
    shares: Shares, super_batch: dict[str, Tensor], embeddings: Mapping[str, Scored], indices: Tensor
) -> tuple[Exchanged, dict[str, dict[str, Scored]]]:
    """Return this rank's part of the sub-batch, and the scores of selected and of rejected examples. A collective.

    Args:
        shares ([`~jest_hf.distributed.Shares`]): How the super-batch is spread over the ranks.
        super_batch (`dict`): This rank's rows.
        embeddings (`dict`): What each model computed of this rank's rows, by model.
        indices (`torch.Tensor`): The sub-batch, int64 `[b]`, positions in the super-batch, the same on every rank.

    Returns:
        The rows of the sub-batch, and a dict with what the models computed of the selected examples (`"selected"`) and
        of as many rejected examples (`"rejected"`). The rejected examples are the first ones of each share, whose
        order is random. `"rejected"` is missing if a rank has too few of them, as losses of batches of different sizes
        cannot be compared.
    """
    # Embeddings or losses of an example travel with its row.
    taken = exchange(shares.ranks, {**super_batch, **_packed(embeddings)}, indices, shares.rows)
    parts = {"selected": _unpacked(taken.batch, embeddings)}
    drawn = [len(indices)]
    if shares.ranks.size > 1:
        drawn = torch.bincount(owners_of(indices, shares.rows), minlength=shares.ranks.size).tolist()
    spare = [readable - m for readable, m in zip(shares.readable, drawn, strict=True)]
    if all(n >= q for n, q in zip(spare, quotas(len(indices), shares.ranks.size), strict=True)):
        valid = super_batch["valid"]
        rest = torch.cat([valid, valid.new_zeros(1)]).index_fill_(0, shares.places(indices), False)[:-1]
        # The first rows of the rest: the k-th is where the count reaches k. Their number is known, so no host waits.
        places = torch.arange(1, len(taken.order) + 1, device=rest.device)
        rejected = torch.searchsorted(rest.cumsum(0), places)
        parts["rejected"] = {name: scored.take(rejected) for name, scored in embeddings.items()}
    return taken, parts


def take_scored(shares: Shares, embeddings: Mapping[str, Scored], indices: Tensor) -> dict[str, Scored]:
    """Return what the models computed of this rank's part of the examples at `indices`. A collective.

    Parts and arguments are as in [`take_sub_batch`].
    """
    return _unpacked(exchange(shares.ranks, _packed(embeddings), indices, shares.rows).batch, embeddings)


def _packed(embeddings: Mapping[str, Scored]) -> dict[str, Tensor]:
    return {f"{name}/{key}": rows for name, scored in embeddings.items() for key, rows in scored.columns().items()}


def _unpacked(rows: dict[str, Tensor], embeddings: Mapping[str, Scored]) -> dict[str, Scored]:
    """Remove the columns of [`_packed`] from `rows`, and return what the models computed, made of these columns."""
    return {
        name: scored.with_columns({key: rows.pop(f"{name}/{key}") for key in scored.columns()})
        for name, scored in embeddings.items()
    }


__all__ = ["take_drawn", "take_readable", "take_scored", "take_sub_batch"]
