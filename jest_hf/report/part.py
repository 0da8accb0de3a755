# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""One Parquet file of a ledger: its columns, its steps, and the error if it is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch


NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("rank", pa.int16()),
        ("order", pa.int32()),
        ("example_id", pa.int64()),
        ("stage", NAMES),
        ("score", pa.float32()),
        ("source", NAMES),
        ("key", pa.string()),
    ]
)


def coded(codes: torch.Tensor, names: Sequence[str]) -> pa.DictionaryArray:
    """Return names by their numbers (`codes`, int64 [b], on the CPU), as a ledger takes stages and sources."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.numpy(), pa.int32()), pa.array(names, pa.string()))


def as_array(column: Any, size: int, kind: pa.DataType) -> pa.Array:
    """Return a column of `size` rows; of nulls for a column of `None`."""
    if column is None:
        return pa.nulls(size, kind)
    return column if isinstance(column, pa.Array) else pa.array(column, type=kind, from_pandas=True)


def steps_of(part: Path) -> tuple[int, int]:
    """Return the first and the last step of a part, from its footer; (1, 0) for a part without rows."""
    try:
        with pq.ParquetFile(part) as file:
            column = file.schema_arrow.get_field_index("step")
            if column < 0:
                raise pa.ArrowInvalid(f"no column 'step' among {', '.join(file.schema_arrow.names)}")
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            known = [group.column(column).statistics for group in groups if group.num_rows]
            return min((one.min for one in known), default=1), max((one.max for one in known), default=0)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(damage_of(part, error)) from error


def read_part(part: Path) -> pa.Table:
    """Return the rows of a part; a `ValueError` if it is damaged."""
    try:
        with pq.ParquetFile(part) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(damage_of(part, error)) from error


def damage_of(part: Path, error: Exception) -> str:
    """The sentence for a part that cannot be read."""
    return f"{part} is damaged ({str(error).splitlines()[0]}); move it elsewhere to read the other selections."


__all__ = ["SCHEMA", "as_array", "coded", "damage_of", "read_part", "steps_of"]
