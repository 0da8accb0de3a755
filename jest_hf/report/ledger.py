# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The ledger of selections: the examples that were trained on at each step, as a folder of Parquet files.

    selections.parquet/part-000001.parquet    the steps up to the first flush
    selections.parquet/part-000002.parquet    the steps up to the second one, and so on
    selections.parquet/_rejected-000001.parquet    a sample of the rows that these steps did not select

[`SelectionLedger.flush`] adds a part and changes no other, so its time does not depend on the steps before. A part has
its name when it is whole: if the process is killed, all parts up to the last flush are there. pyarrow and pandas read
the folder like a file; [`read_selections`] also reads the single file of earlier versions, which becomes the first
part of the folder when the run goes on. Readers of a folder pass over names that begin with an underscore:
[`read_rejected`] reads the sample of rejected rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers.utils import logging

from jest_hf.files import lock, remove_unfinished, replacing, unlock
from jest_hf.report.part import SCHEMA, as_array, damage_of, read_part, steps_of


logger = logging.get_logger(__name__)

ROWS_PER_GROUP, STEPS_KEPT = 1 << 18, 1000  # about 30 bytes a row: under 8 MB in memory
SELECTED, REJECTED = "part-", "_rejected-"  # what the names of parts begin with
DAMAGED = "_damaged-"  # readers of a folder pass over names that begin with an underscore


class SelectionLedger:
    """Records the examples that are trained on at each step in a folder of Parquet files.

    The files have the columns `step` (int32, from 1), `rank` (int16), `order` (int32, the place in the order of
    drawing, from 0), `example_id` (int64), `stage` (what selected the example: `"uniform"`, `"loader"` or `"step"`),
    `score` (float32, of the example by itself), `source` (with `JESTConfig.source_column`) and `key` (the `__key__` of
    webdataset). Of the last four a value is null where a run does not know it. A run calls
    [`~SelectionLedger.begin`] first and [`~SelectionLedger.close`] at its end.

    Args:
        path (`str` or `os.PathLike`):
            The folder, usually `output_dir/selections.parquet`. The first flush makes it.

    Example:

    ```python
    >>> import tempfile
    >>> from jest_hf.report import SelectionLedger, read_selections
    >>> ledger = SelectionLedger(tempfile.mkdtemp() + "/selections.parquet")
    >>> ledger.record(step=1, example_ids=[7, 3], scores=[0.5, 0.25])
    >>> ledger.flush()
    >>> read_selections(ledger.path).select(["step", "order", "example_id", "score"]).to_pydict()
    {'step': [1, 1], 'order': [0, 1], 'example_id': [7, 3], 'score': [0.5, 0.25]}

    ```
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._pending: dict[str, list[pa.RecordBatch]] = {SELECTED: [], REJECTED: []}

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
        self._forget()
        self._adopt()
        if step == 0:
            if self._parts() or self._parts(REJECTED):
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
        *,
        stages: Sequence[str] | None = None,
        scores: torch.Tensor | Sequence[float] | None = None,
        sources: Sequence[str] | None = None,
        keys: Sequence[str | None] | None = None,
    ) -> None:
        """Keep the selection of one step in memory until the next flush, which comes by itself after 1,000 steps.

        Args:
            step (`int`):
                The optimisation step, counted from 1 as in the names of checkpoints.
            example_ids (`torch.Tensor` or sequence of `int`):
                Ids of the selected examples, int64 [b].
            rank (`int` or `torch.Tensor`, *optional*, defaults to `0`):
                The rank that trained on the examples, one for all or one for each, [b].
            order (`torch.Tensor`, *optional*):
                Place of each example in the order of drawing, [b]. By default the order of `example_ids`.
            stages (sequence of `str`, *optional*):
                What selected each example, one of `selection.STAGES`.
            scores (`torch.Tensor` or sequence of `float`, *optional*):
                Score of each example, float32 [b]; NaN stands for no score, as `None` does for all.
            sources, keys (sequence of `str`, *optional*):
                Source and string key of each example.

        Raises:
            ValueError: If `step` is below 1.
        """
        size = len(example_ids)
        places = np.arange(size) if order is None else order.cpu().numpy()
        self._keep(SELECTED, step, example_ids, rank, places, stages, scores, sources, keys)

    def record_rejected(
        self, step: int, example_ids: torch.Tensor | Sequence[int], rank: torch.Tensor | int = 0, **details: Any
    ) -> None:
        """Keep a sample of the examples that a step did not select in memory until the next flush.

        Arguments are as in [`~SelectionLedger.record`]; the stage of an example is the one that did not select it.
        """
        given = (details.get(name) for name in ("stages", "scores", "sources", "keys"))
        self._keep(REJECTED, step, example_ids, rank, None, *given)

    def _keep(self, kind: str, step: int, example_ids: Any, rank: Any, order: Any, *details: Any) -> None:
        if step < 1:
            raise ValueError(f"step={step} must be at least 1; pass state.global_step + 1.")
        ids = torch.as_tensor(example_ids, dtype=torch.int64).cpu().numpy()
        size = len(ids)
        if kind == SELECTED and self._is_full():  # before a step, so that no part ends between its two kinds of rows
            self.flush()
        stages, scores, sources, keys = details
        if scores is not None:
            scores = torch.as_tensor(scores, dtype=torch.float32).cpu().numpy()
        columns = (
            np.full(size, step),
            np.broadcast_to(torch.as_tensor(rank).cpu().numpy(), size),
            order,
            ids,
            stages,
            scores,
            sources,
            keys,
        )
        arrays = [as_array(column, size, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        self._pending[kind].append(pa.record_batch(arrays, schema=SCHEMA))

    def _is_full(self) -> bool:
        """Whether so much is kept in memory that a run without checkpoints would grow with its steps."""
        n_rows = sum(len(batch) for batches in self._pending.values() for batch in batches)
        return len(self._pending[SELECTED]) >= STEPS_KEPT or n_rows >= ROWS_PER_GROUP

    def _forget(self) -> None:
        for batches in self._pending.values():
            batches.clear()

    def flush(self) -> None:
        """Write the steps recorded since the last flush as a new part. No other part is read or changed."""
        self._adopt()
        # The rejected rows first: if the process is killed in between, the steps are not recorded yet.
        for kind in (REJECTED, SELECTED):
            if any(len(batch) for batch in self._pending[kind]):
                last = max((number for number, _ in self._numbered(kind)), default=0)
                table = pa.Table.from_batches(self._pending[kind]).unify_dictionaries()
                self._write(self.path / f"{kind}{last + 1:06d}.parquet", table)
        self._forget()

    def since(self, step: int, columns: Sequence[str], *, rejected: bool = False) -> Iterator[pa.Table]:
        """Yield some columns of the rows of all steps after `step`, in groups of rows: of the newest parts, which
        alone are read, and of the steps in memory."""
        kind, later = REJECTED if rejected else SELECTED, pc.field("step") > step
        recent = list(takewhile(lambda part: steps_of(part)[1] > step, reversed(self._parts(kind))))
        for part in reversed(recent):
            yield from (group.filter(later).select(columns) for group in _groups(part, ["step", *columns]))
        yield pa.Table.from_batches(self._pending[kind], SCHEMA).filter(later).select(columns)

    def truncate(self, step: int) -> None:
        """Drop the rows of all later steps, in memory and on the disk, and flush.

        Args:
            step (`int`):
                The last step to keep; 0 empties the ledger.
        """
        keep = pc.field("step") <= step
        self._pending = {kind: [batch.filter(keep) for batch in batches] for kind, batches in self._pending.items()}
        self._adopt()
        for kind in (SELECTED, REJECTED):
            remove_unfinished(self.path, kind)
        # From the last to the first: if the process is killed here, the ledger is still without a gap.
        for part in reversed([*self._parts(REJECTED), *self._parts()]):
            try:
                first, last = steps_of(part)
                if first > step:
                    part.unlink()
                elif last > step:
                    self._write(part, read_part(part).filter(keep))
            except ValueError as error:
                aside = self._free(part.with_name(DAMAGED + part.name))
                os.replace(part, aside)
                logger.warning(f"{error} It is kept as {aside.name}, and the ledger goes on without its steps.")
        self.flush()

    def close(self) -> None:
        """Flush, and let other processes write into the folder."""
        try:
            if any(self._pending.values()):
                self.flush()
        finally:
            unlock(self._lock)

    @property
    def _lock(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    def _numbered(self, kind: str = SELECTED) -> list[tuple[int, Path]]:
        pattern = re.compile(rf"{kind}(\d+)\.parquet")
        found = ((pattern.fullmatch(path.name), path) for path in self.path.iterdir()) if self.path.is_dir() else ()
        return sorted((int(match[1]), path) for match, path in found if match)

    def _parts(self, kind: str = SELECTED) -> list[Path]:
        return [path for _, path in self._numbered(kind)]

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
        return step - sum(last - first + 1 for first, last in map(steps_of, self._parts()))

    def _write(self, path: Path, table: pa.Table) -> None:
        try:
            with replacing(path) as file, pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        except OSError as error:
            raise OSError(
                f"{path} could not be written ({error}); make room if the disk is full, and go on from the last "
                "checkpoint with resume_from_checkpoint=True."
            ) from error


def read_selections(path: str | os.PathLike[str]) -> pa.Table:
    """Read what a [`SelectionLedger`] has written.

    Args:
        path (`str` or `os.PathLike`):
            The `selections.parquet` of a run: a folder, or the single file of earlier versions.

    Returns:
        `pyarrow.Table`: The columns of a [`SelectionLedger`]; one row for each example trained on. Columns that an
        earlier version did not write are null.

    Raises:
        FileNotFoundError: if there is no ledger.
        ValueError: if a file of the ledger is damaged; the message names it.
    """
    return pa.concat_tables([SCHEMA.empty_table(), *read_parts(path)], promote_options="default")


def read_rejected(path: str | os.PathLike[str]) -> pa.Table:
    """Read the sample of rejected examples: a few of each step, drawn uniformly by the seed of the run.

    Arguments and errors are those of [`read_selections`].

    Returns:
        `pyarrow.Table`: The columns of a [`SelectionLedger`]; `order` is null, and `stage` is what did not select the
        example: `"prefilter"`, `"loader"` or `"step"`. Empty for a ledger of an earlier version.
    """
    return pa.concat_tables([SCHEMA.empty_table(), *read_parts(path, rejected=True)], promote_options="default")


def read_parts(
    path: str | os.PathLike[str], *, rejected: bool = False, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Read a ledger in groups of rows, so that a long one fits in memory; as [`read_selections`], [`read_rejected`].

    Args:
        path (`str` or `os.PathLike`): The `selections.parquet` of a run.
        rejected (`bool`, *optional*, defaults to `False`): Whether to read the sample of rejected examples.
        columns (sequence of `str`, *optional*): The columns to read; a part without one of them lacks it. Default:
            all.
    """
    ledger = SelectionLedger(path)
    if not ledger.path.exists():
        raise FileNotFoundError(f"{path} does not exist; a run writes it with record_selection=True.")
    if ledger.path.is_dir():
        parts = ledger._parts(REJECTED if rejected else SELECTED)
    else:
        parts = [] if rejected else [ledger.path]
    for part in parts:
        yield from _groups(part, columns)


def _groups(part: Path, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(part) as file:
            known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=known)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(damage_of(part, error)) from error


def ledger_steps(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the first and the last step of a ledger, and read no rows; (1, 0) for one without rows.

    Raises:
        FileNotFoundError, ValueError: as [`read_selections`].
    """
    ledger = SelectionLedger(path)
    if not ledger.path.exists():
        raise FileNotFoundError(f"{path} does not exist; a run writes it with record_selection=True.")
    found = [steps_of(part) for part in (ledger._parts() if ledger.path.is_dir() else [ledger.path])]
    known = [one for one in found if one[1] > 0]
    return min((first for first, _ in known), default=1), max((last for _, last in known), default=0)


__all__ = ["SelectionLedger", "ledger_steps", "read_parts", "read_rejected", "read_selections"]
