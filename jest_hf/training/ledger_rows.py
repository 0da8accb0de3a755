# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the ledger gets to know of the rows of a step, as ONE tensor: one copy to the host, one exchange of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jest_hf.batch import as_bits, from_bits
from jest_hf.data.keys import ROW_KEY, read_keys
from jest_hf.report.part import coded
from jest_hf.selection import STAGES, Pool
from jest_hf.training.step import SubBatch


@dataclass(frozen=True)
class LedgerRows:
    """
    Rows of a step on the host.

    Args:
        ids (`torch.Tensor`): Their ids, int64 `[k]`.
        order (`torch.Tensor`): Their places in the order of drawing, int64 `[k]`; -1 for rows that were not selected.
        ranks (`torch.Tensor`): Their ranks, int64 `[k]`.
        scores (`torch.Tensor`): Their scores, float32 `[k]`; NaN for a row without a score.
        stages (`torch.Tensor`): What decided about them, int64 `[k]`, places in `selection.STAGES`.
        keys (`torch.Tensor`, *optional*): Their keys, uint8 `[k, 64]`.
    """

    ids: Tensor
    order: Tensor
    ranks: Tensor
    scores: Tensor
    stages: Tensor
    keys: Tensor | None

    def where(self, chosen: Tensor) -> LedgerRows:
        """Return the rows that bool `[k]` marks."""
        columns = (self.ids, self.order, self.ranks, self.scores, self.stages)
        ids, order, ranks, scores, stages = (column[chosen] for column in columns)
        return LedgerRows(ids, order, ranks, scores, stages, None if self.keys is None else self.keys[chosen])

    def details(self) -> dict[str, Any]:
        """Return what a ledger records besides ids, ranks and places."""
        return {
            "stages": coded(self.stages, STAGES),
            "scores": self.scores,
            "keys": None if self.keys is None else read_keys(self.keys),
        }


def pack(sub_batch: SubBatch, pool: Pool) -> Tensor:
    """Return this rank's rows for the ledger, int64 `[k, 4]`, with keys `[k, 12]`: the sub-batch, then the sample of
    rows that were not selected. No host waits."""
    ids, order = sub_batch.rows["example_id"], sub_batch.order
    scores = torch.full_like(ids, torch.nan, dtype=torch.float32) if sub_batch.scores is None else sub_batch.scores
    keys = sub_batch.rows.get(ROW_KEY)
    parts = [_block(ids, order, scores, sub_batch.stage, keys)]
    for graded in sub_batch.rejected:
        ids_of, scores_of = (value.to(ids.device, non_blocking=True) for value in (graded.ids, graded.scores))
        if keys is not None:
            known = graded.rows is not None and ROW_KEY in pool.rows
            keys_of = pool.rows[ROW_KEY][graded.rows] if known else keys.new_zeros(len(ids_of), keys.shape[1])
        parts.append(
            _block(ids_of, torch.full_like(ids_of, -1), scores_of, graded.stage, None if keys is None else keys_of)
        )
    return torch.cat(parts)


def _block(ids: Tensor, order: Tensor, scores: Tensor, stage: str, keys: Tensor | None) -> Tensor:
    bits = as_bits(scores.contiguous()).long()
    columns = torch.stack([ids, order, bits, torch.full_like(ids, STAGES.index(stage))], dim=1)
    return columns if keys is None else torch.cat([columns, keys.contiguous().view(torch.int64)], dim=1)


def unpack(columns: Tensor, counts: list[int]) -> LedgerRows:
    """Return the rows of [`pack`], of all ranks; `counts` are the rows of each of them."""
    ids, order, bits, stages = columns[:, :4].T
    keys = columns[:, 4:].contiguous().view(torch.uint8) if columns.shape[1] > 4 else None
    rows = LedgerRows(
        ids,
        order,
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        from_bits(bits.to(torch.int32)),
        stages,
        keys,
    )
    return rows.where((order >= 0) | (ids >= 0))


__all__ = ["LedgerRows", "pack", "unpack"]
