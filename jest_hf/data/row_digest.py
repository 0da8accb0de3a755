# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A short digest of the rows of a data set, from a sample of them: whether two data sets are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from os import PathLike, path
from typing import Any

import numpy as np
from torch import Tensor

from jest_hf.data.rows import Rows


SAMPLED_ROWS = 16
PLAIN = (str, int, float, bool, type(None))


def digest_row(row: Mapping[str, Any], image_column: str | None) -> str:
    """Return the digest of one row, 16 hexadecimal digits; `image_column` holds an image or the name of its file."""
    return _digest([_of_row(row, image_column)])


def digest_rows(dataset: Any, image_column: str | None) -> str | None:
    """Return the digest of 16 rows of map-style data; `None` for rows that are different whenever they are read.

    Example:

    ```python
    >>> from jest_hf.data.row_digest import digest_rows
    >>> digest_rows([{"text": "a"}], None) == digest_rows([{"text": "b"}], None)
    False

    ```
    """
    rows = Rows(dataset, image_column)
    numbers = np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).astype(np.int64)).tolist() if len(rows) else []
    try:
        found, again = ([_of_row(rows[number], image_column) for number in numbers] for _ in range(2))
    except Exception:  # a data set of the user, which may raise anything for a broken row
        return None
    return _digest(found) if found == again else None  # a transform that draws gives other rows each time


def _of_row(row: Mapping[str, Any], image_column: str | None) -> list[Any]:
    return [[name, _of_value(value, name == image_column)] for name, value in sorted(row.items())]


def _of_value(value: Any, is_image: bool = False) -> Any:
    """A value as JSON; of an image file its bytes or its name, without the folder, which may have moved."""
    if is_image and isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if is_image and isinstance(value, str | PathLike):
        return path.basename(value)
    if isinstance(value, bytes | bytearray):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, list | tuple):
        return [_of_value(one) for one in value]
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return value if isinstance(value, PLAIN) else type(value).__name__


def _digest(rows: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()[:16]


__all__ = ["digest_row", "digest_rows"]
