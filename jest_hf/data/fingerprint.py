# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What identifies the images of a data set, without reading them all.

The images are identified by their number, by a sample of them, byte for byte, and in a `datasets.Dataset` by the
length of every image file (or, of images that lie in files of their own, by the name of every file). The fingerprint
of `datasets` is no substitute: it is random after a transform that cannot be hashed, and differs between ways to load
the same files. An image that is replaced by one of the same length, between two rows of the sample, is not noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jest_hf.data.broken import BrokenRow
from jest_hf.data.rows import Rows
from jest_hf.images.pixels import decode_image
from jest_hf.images.reading import BrokenImage, encoded_of, read_encoded


SAMPLED_ROWS = 256


def describe_images(rows: Rows, image_column: str) -> dict[str, Any]:
    """Identify the images of a data set: their column, their number, the length of each file, and a sample of files.

    Args:
        rows ([`~jest_hf.data.rows.Rows`]): The data.
        image_column (`str`): Column of the images.

    Raises:
        ValueError: for data without rows, or without the column.

    Example:

    ```python
    >>> from jest_hf.data.fingerprint import describe_images
    >>> from jest_hf.data.rows import Rows
    >>> describe_images(Rows([{"image": b"one"}, {"image": b"two"}]), "image")
    {'image_column': 'image', 'n_rows': 2, 'row': {'0': '7692c3ad3540bb80', '1': '3fc4ccfe745870e2'}}

    ```
    """
    if len(rows) == 0:
        raise ValueError("the data set has no rows; pass a data set with at least one row.")
    known = {}
    if (table := table_of(rows)) is not None and (files := _hash_files(table, image_column)) is not None:
        known["files"] = files
    sample = {}
    for index in sampled(len(rows)):
        row = rows[index]
        if image_column not in row:
            raise ValueError(
                f"image_column={image_column!r} is not a column of the rows (there are: {', '.join(map(str, row))}); "
                "name one of these."
            )
        sample[str(index)] = hashlib.sha256(content_of(row[image_column])).hexdigest()[:16]
    return {"image_column": image_column, "n_rows": len(rows), **known, "row": sample}


def sampled(n_rows: int) -> list[int]:
    """Return the numbers of at most 256 rows, at equal distances, the first and the last among them."""
    chosen: list[int] = np.unique(np.linspace(0, n_rows - 1, SAMPLED_ROWS).round().astype(np.int64)).tolist()
    return chosen


def first_readable(rows: Rows) -> dict[str, Any]:
    """Return the first of the [`sampled`] rows that can be read, which shows the columns; row 0 if none can."""
    read = (rows[index] for index in sampled(len(rows)))
    return next((row for row in read if not isinstance(row, BrokenRow)), None) or rows[0]


def table_of(rows: Rows) -> datasets.Dataset | None:
    """Return the data set if one of its columns can be read without the others, else `None`."""
    dataset = rows.dataset
    return dataset if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom" else None


def content_of(image: Any) -> bytes:
    """Return the bytes of an image file, or the pixels of an image in memory; nothing if it cannot be read.

    An image that is converted to a mode (`datasets.Image(mode="L")`) is another one than that of the same file.
    """
    image, mode = encoded_of(image), ""
    if isinstance(image, Mapping):
        mode = image.get("mode") or ""
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    try:
        if isinstance(image, str | PathLike | bytes | bytearray | memoryview):
            return mode.encode() + bytes(read_encoded(image))
        decoded = decode_image(image)
        return f"{decoded.size}".encode() + decoded.tobytes()
    except (OSError, BrokenImage):
        return b""


def _hash_files(dataset: datasets.Dataset, column: str) -> str | None:
    """Return a hash of the length of every image file, and of the names of files outside of the data set.

    Reads no image: the table has the lengths apart. `None` for images that are no files, such as arrays.
    """
    files = dataset.data.column(column)
    order = None if dataset._indices is None else dataset._indices.column(0).to_numpy()  # after select or shuffle
    digest = hashlib.sha256()
    names = files if pa.types.is_string(files.type) else None
    if pa.types.is_struct(files.type) and {"bytes", "path"} <= {field.name for field in files.type}:
        files, names = pc.struct_field(files, "bytes"), pc.struct_field(files, "path")
    if pa.types.is_binary(files.type) or pa.types.is_large_binary(files.type):
        lengths = pc.fill_null(pc.cast(pc.binary_length(files), pa.int64()), -1).to_numpy()
        digest.update((lengths if order is None else lengths[order]).tobytes())
        inside = lengths >= 0
    elif names is not None:
        inside = np.zeros(len(files), dtype=bool)
    else:
        return None
    if names is not None and not inside.all():
        places = np.flatnonzero(~inside) if order is None else order[~inside[order]]
        digest.update(json.dumps([name and Path(name).name for name in names.take(places).to_pylist()]).encode())
    return digest.hexdigest()


__all__ = ["content_of", "describe_images", "first_readable", "sampled", "table_of"]
