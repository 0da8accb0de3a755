# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The ledger of selections: which example was trained on at which step, in a Parquet file.

A Parquet file cannot be appended to, and one that was being written when the process died cannot be read at all. So
new rows wait in memory until [`SelectionLedger.flush`] writes old and new rows together into a second file, which then
takes the place of the first in one move. Whenever the process is killed, the file is the complete one of the last
flush. Old rows pass through memory a row group at a time, so that the length of the run does not matter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch


SCHEMA = pa.schema([("step", pa.int32()), ("rank", pa.int16()), ("order", pa.int32()), ("example_id", pa.int64())])
ROWS_PER_GROUP = 1 << 18  # 18 bytes a row: under 5 MB in memory


class SelectionLedger:
    """
    Records the selected examples of every step in a Parquet file.

    The file has the columns `step` (int32, from 1), `rank` (int16), `order` (int32, the place in the order of drawing,
    from 0) and `example_id` (int64). An existing file is continued: call [`~SelectionLedger.truncate`] with the step
    of the checkpoint that training resumes from, or with 0 for a fresh start.

    Args:
        path (`str` or `os.PathLike`):
            The file, usually `output_dir/selections.parquet`. Its folder is made at the first flush.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._pending: list[pa.RecordBatch] = []

    def record(
        self,
        step: int,
        example_ids: torch.Tensor | Sequence[int],
        rank: torch.Tensor | int = 0,
        order: torch.Tensor | None = None,
    ) -> None:
        """
        Keeps one step's selection in memory until the next flush.

        Args:
            step (`int`):
                The optimisation step, counted from 1 as in the names of checkpoints.
            example_ids (`torch.Tensor` or sequence of `int`):
                int64 [b], the ids of the selected examples.
            rank (`int` or `torch.Tensor`, *optional*, defaults to `0`):
                The process that trained on them, or on each, [b].
            order (`torch.Tensor`, *optional*):
                The place of each in the order of drawing, [b]. Default: they come in that order.

        Raises:
            `ValueError`: if `step` is below 1: [`~SelectionLedger.truncate`] could not tell it from a fresh start.
        """
        if step < 1:
            raise ValueError(f"step={step}, but steps are counted from 1: pass the number of the step being taken.")
        ids = torch.as_tensor(example_ids, dtype=torch.int64).cpu().numpy()
        size = len(ids)
        order = np.arange(size) if order is None else order.cpu().numpy()
        rank = np.broadcast_to(torch.as_tensor(rank).cpu().numpy(), size)
        columns = (np.full(size, step), rank, order, ids)
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        self._pending.append(pa.record_batch(arrays, schema=SCHEMA))

    def flush(self) -> None:
        """Writes what was recorded since the last flush. The file is replaced in one move, never changed in place."""
        if self._pending or not self.path.exists():
            self._rewrite(self._written())
            self._pending.clear()

    def truncate(self, step: int) -> None:
        """
        Drops every row of a later step, in memory and in the file.

        Args:
            step (`int`):
                The last step to keep; 0 empties the ledger.
        """
        keep = pc.field("step") <= step
        self._pending = [batch.filter(keep) for batch in self._pending]
        self._rewrite(batch.filter(keep) for batch in self._written())
        self._pending.clear()

    def _written(self) -> Iterator[pa.RecordBatch]:
        if self.path.exists():
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(ROWS_PER_GROUP)

    def _rewrite(self, written: Iterator[pa.RecordBatch]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with open(temporary, "wb") as file:
            with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
                for batch in written:
                    writer.write_batch(batch)
                if self._pending:
                    writer.write_table(pa.Table.from_batches(self._pending), row_group_size=ROWS_PER_GROUP)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


def read_selections(path: str | os.PathLike[str]) -> pa.Table:
    """
    Reads a ledger's file.

    Args:
        path (`str` or `os.PathLike`):
            The `selections.parquet` of a run.

    Returns:
        `pyarrow.Table`: columns `step`, `rank`, `order` and `example_id`, a row per trained example, as recorded.
    """
    return pq.read_table(path)
