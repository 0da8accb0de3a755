# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A list of the rows to keep of a data set: a Parquet file in place of a copy of the rows.

The file has the column `row` (int64, ascending: numbers of rows, from 0) and, where the data have them, the columns
`example_id`, `__key__` and `uid`, by which a list of other data is noticed. Its metadata have the number of rows of
the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


ROW = "row"
NAMES = ("example_id", "__key__", "uid")  # columns that name a row
_N_ROWS = b"jest_hf.n_rows"


def write_subset(path: str | Path, columns: Mapping[str, Any], n_rows: int) -> None:
    """Write a list of rows.

    Args:
        path (`str` or `Path`): The Parquet file.
        columns (`Mapping`): Columns by name, `[n]` each, with `row`.
        n_rows (`int`): Rows of the data set (N).
    """
    table = pa.table(dict(columns))
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _N_ROWS: str(n_rows).encode()})
    pq.write_table(table, path, compression="zstd")


def select_subset(dataset: datasets.Dataset, path: str | Path) -> datasets.Dataset:
    """Return the listed rows of a data set, in the order of the data. No row is copied.

    Args:
        dataset (`datasets.Dataset`): The data set that the list was made of.
        path (`str` or `Path`): A file of [`write_subset`], or any Parquet file with a column `row` of numbers of rows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no list of rows, or a list of other data.

    Example:

    ```python
    >>> import datasets, pyarrow, pyarrow.parquet, tempfile
    >>> from jest_hf.data import select_subset
    >>> path = tempfile.mkdtemp() + "/kept.parquet"
    >>> pyarrow.parquet.write_table(pyarrow.table({"row": [0, 2]}), path)
    >>> select_subset(datasets.Dataset.from_dict({"text": ["a", "b", "c"]}), path)["text"][:]
    ['a', 'c']

    ```
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"subset={str(path)!r} does not exist; make it with `jest-hf curate --list {path}`.")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"subset={str(path)!r} is not a Parquet file ({error}); pass one of `jest-hf curate`."
        ) from error
    if ROW not in table.column_names or not pa.types.is_integer(table.schema.field(ROW).type) or not len(table):
        raise ValueError(
            f"subset={str(path)!r} has no column {ROW!r} of row numbers, or no rows; pass a file of `jest-hf curate "
            "--list`."
        )
    rows = table[ROW].to_numpy().astype(np.int64)
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    known = (table.schema.metadata or {}).get(_N_ROWS)
    n_rows = len(dataset) if known is None else int(known)
    if n_rows != len(dataset) or rows[0] < 0 or rows[-1] >= len(dataset) or (np.diff(rows) == 0).any():
        raise ValueError(
            f"subset={str(path)!r} lists {len(rows)} of {n_rows} rows, up to row {rows[-1]}, and the data set has "
            f"{len(dataset)}; name the data set that the list was made of, with the same split, where and max_rows."
        )
    chosen = dataset.select(rows)
    for name in NAMES:
        if name in table.column_names and name in dataset.column_names:
            listed = table[name].take(pa.array(order)).to_pylist()
            if listed != chosen.select_columns([name]).with_format(None)[:][name]:
                raise ValueError(
                    f"subset={str(path)!r} is a list of other data: the values of {name!r} differ; name the data set "
                    "that the list was made of."
                )
    return chosen


__all__ = ["select_subset", "write_subset"]
