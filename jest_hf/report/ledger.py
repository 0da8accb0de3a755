# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The ledger of selections: the examples that were trained on at each step, as a folder of Parquet files.

    selections.parquet/part-000001.parquet    the steps up to the first flush
    selections.parquet/part-000002.parquet    the steps up to the second one, and so on

[`SelectionLedger.flush`] adds a part and changes no other, so its time does not depend on the steps before. A part has
its name when it is whole: if the process is killed, all parts up to the last flush are there. pyarrow and pandas read
the folder like a file; [`read_selections`] also reads the single file of earlier versions, which becomes the first
part of the folder when the run goes on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers.utils import logging

from jest_hf.files import lock, remove_unfinished, replacing, unlock


logger = logging.get_logger(__name__)

SCHEMA = pa.schema([("step", pa.int32()), ("rank", pa.int16()), ("order", pa.int32()), ("example_id", pa.int64())])
ROWS_PER_GROUP = 1 << 18  # 18 bytes a row: under 5 MB in memory
PART = re.compile(r"part-(\d+)\.parquet")
DAMAGED = "_damaged-"  # readers of a folder pass over names that begin with an underscore


class SelectionLedger:
    """Records the examples that are trained on at each step in a folder of Parquet files.

    The files have the columns `step` (int32, from 1), `rank` (int16), `order` (int32, the place in the order of
    drawing, from 0) and `example_id` (int64). A run calls [`~SelectionLedger.begin`] first and
    [`~SelectionLedger.close`] at its end.

    Args:
        path (`str` or `os.PathLike`):
            The folder, usually `output_dir/selections.parquet`. The first flush makes it.

    Example:

    ```python
    >>> import tempfile
    >>> from jest_hf.report import SelectionLedger, read_selections
    >>> ledger = SelectionLedger(tempfile.mkdtemp() + "/selections.parquet")
    >>> ledger.record(step=1, example_ids=[7, 3])
    >>> ledger.flush()
    >>> read_selections(ledger.path).to_pydict()
    {'step': [1, 1], 'rank': [0, 0], 'order': [0, 1], 'example_id': [7, 3]}

    ```
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._pending: list[pa.RecordBatch] = []

    def acquire(self) -> None:
        """Keep other processes from writing into the folder until [`~SelectionLedger.close`].

        Raises:
            ValueError: if another process that is alive writes into it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not lock(self._lock):
            raise ValueError(
                f"another run is writing its selections to {self.path}; wait for its end, or set output_dir to "
                "another folder."
            )

    def begin(self, step: int) -> None:
        """Prepare the folder for a run that starts after `step`; what does not belong to the run is set aside.

        - At step 0, selections of an earlier run are moved to `selections-1.parquet` (or `-2` and so on).
        - Later steps than `step` are dropped: the run takes them again.
        - A part that cannot be read is set aside as `_damaged-part-....parquet`.

        Each of these but the second is said in a warning, and so are steps up to `step` that the ledger lacks.

        Args:
            step (`int`): The step of the checkpoint that training resumes from; 0 for a fresh start.
        """
        self._pending.clear()
        self._adopt()
        if step == 0:
            if self._parts():
                aside = self._free(self.path)
                os.replace(self.path, aside)
                logger.warning(f"{self.path} has the selections of an earlier run; they are kept in {aside}.")
        self.truncate(step)
        if missing := self._missing(step):
            logger.warning(
                f"{self.path} lacks the selections of {missing} of the {step} steps before this resume; the steps "
                "from here on are recorded."
            )

    def record(
        self,
        step: int,
        example_ids: torch.Tensor | Sequence[int],
        rank: torch.Tensor | int = 0,
        order: torch.Tensor | None = None,
    ) -> None:
        """Keep the selection of one step in memory until the next flush.

        Args:
            step (`int`):
                The optimisation step, counted from 1 as in the names of checkpoints.
            example_ids (`torch.Tensor` or sequence of `int`):
                Ids of the selected examples, int64 [b].
            rank (`int` or `torch.Tensor`, *optional*, defaults to `0`):
                The rank that trained on the examples, one for all or one for each, [b].
            order (`torch.Tensor`, *optional*):
                Place of each example in the order of drawing, [b]. By default the order of `example_ids`.

        Raises:
            ValueError: If `step` is below 1.
        """
        if step < 1:
            raise ValueError(f"step={step} must be at least 1; pass state.global_step + 1.")
        ids = torch.as_tensor(example_ids, dtype=torch.int64).cpu().numpy()
        size = len(ids)
        columns = (
            np.full(size, step),
            np.broadcast_to(torch.as_tensor(rank).cpu().numpy(), size),
            np.arange(size) if order is None else order.cpu().numpy(),
            ids,
        )
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        self._pending.append(pa.record_batch(arrays, schema=SCHEMA))

    def flush(self) -> None:
        """Write the steps recorded since the last flush as a new part. No other part is read or changed."""
        self._adopt()
        if any(len(batch) for batch in self._pending):
            last = max((number for number, _ in self._numbered()), default=0)
            self._write(self.path / f"part-{last + 1:06d}.parquet", pa.Table.from_batches(self._pending))
        self._pending.clear()

    def truncate(self, step: int) -> None:
        """Drop the rows of all later steps, in memory and on the disk, and flush.

        Args:
            step (`int`):
                The last step to keep; 0 empties the ledger.
        """
        keep = pc.field("step") <= step
        self._pending = [batch.filter(keep) for batch in self._pending]
        self._adopt()
        remove_unfinished(self.path, "part-")
        # From the last to the first: if the process is killed here, the ledger is still without a gap.
        for part in reversed(self._parts()):
            try:
                first, last = _steps(part)
                if first > step:
                    part.unlink()
                elif last > step:
                    self._write(part, _read(part).filter(keep))
            except ValueError as error:
                aside = self._free(part.with_name(DAMAGED + part.name))
                os.replace(part, aside)
                logger.warning(f"{error} It is kept as {aside.name}, and the ledger goes on without its steps.")
        self.flush()

    def close(self) -> None:
        """Flush, and let other processes write into the folder."""
        try:
            if self._pending:
                self.flush()
        finally:
            unlock(self._lock)

    @property
    def _lock(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    def _numbered(self) -> list[tuple[int, Path]]:
        found = ((PART.fullmatch(path.name), path) for path in self.path.iterdir()) if self.path.is_dir() else ()
        return sorted((int(match[1]), path) for match, path in found if match)

    def _parts(self) -> list[Path]:
        return [path for _, path in self._numbered()]

    def _adopt(self) -> None:
        """Make the folder; the single file of an earlier version becomes its first part."""
        moved = self.path.with_name(f".{self.path.name}.moved")  # in between: a folder cannot replace a file
        if self.path.is_file():
            os.replace(self.path, moved)
        self.path.mkdir(parents=True, exist_ok=True)
        if moved.is_file() and not self._parts():
            os.replace(moved, self.path / "part-000001.parquet")

    def _free(self, path: Path) -> Path:
        """Return a name like that of `path` that no file has."""
        number = 0
        while (aside := path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path).exists():
            number += 1
        return aside

    def _missing(self, step: int) -> int:
        """Return how many of the first `step` steps no part has. The steps of a part follow each other."""
        return step - sum(last - first + 1 for first, last in map(_steps, self._parts()))

    def _write(self, path: Path, table: pa.Table) -> None:
        try:
            with replacing(path) as file, pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        except OSError as error:
            raise OSError(
                f"{path} could not be written ({error}); make room if the disk is full, and go on from the last "
                "checkpoint with resume_from_checkpoint=True."
            ) from error


def _steps(part: Path) -> tuple[int, int]:
    """Return the first and the last step of a part, from its footer; (1, 0) for a part without rows."""
    try:
        with pq.ParquetFile(part) as file:
            column = file.schema_arrow.get_field_index("step")
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            known = [group.column(column).statistics for group in groups if group.num_rows]
            return min((one.min for one in known), default=1), max((one.max for one in known), default=0)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_damage(part, error)) from error


def read_selections(path: str | os.PathLike[str]) -> pa.Table:
    """Read what a [`SelectionLedger`] has written.

    Args:
        path (`str` or `os.PathLike`):
            The `selections.parquet` of a run: a folder, or the single file of earlier versions.

    Returns:
        `pyarrow.Table`: Columns `step`, `rank`, `order` and `example_id`; one row for each example trained on.

    Raises:
        FileNotFoundError: if there is no ledger.
        ValueError: if a file of the ledger is damaged; the message names it.
    """
    ledger = SelectionLedger(path)
    if not ledger.path.exists():
        raise FileNotFoundError(f"{path} does not exist; a run writes it with record_selection=True.")
    parts = ledger._parts() if ledger.path.is_dir() else [ledger.path]
    return pa.concat_tables([SCHEMA.empty_table(), *map(_read, parts)], promote_options="default")


def _read(part: Path) -> pa.Table:
    try:
        with pq.ParquetFile(part) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(_damage(part, error)) from error


def _damage(part: Path, error: Exception) -> str:
    return f"{part} is damaged ({str(error).splitlines()[0]}); move it elsewhere to read the other selections."


__all__ = ["SelectionLedger", "read_selections"]
