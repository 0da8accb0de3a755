# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows whose image lies in a column of its own for each format, as those of webdataset do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


# Columns of webdataset, which are the suffixes of files. `seg.png` is not among them: it may be another image.
IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "jpe", "jfif", "apng")


def with_image(row: Mapping[str, Any], image_column: str | None) -> Mapping[str, Any]:
    """Return a row whose image is in `image_column`, if that column is a format and the image has another format.

    Example:

    ```python
    >>> from jest_hf.data.columns import with_image
    >>> with_image({"jpg": None, "png": b"an image", "txt": "a"}, "jpg")
    {'jpg': b'an image', 'png': b'an image', 'txt': 'a'}

    ```
    """
    if image_column is None or image_column.lower() not in IMAGE_COLUMNS or row.get(image_column) is not None:
        return row
    found = next((name for name in row if name.lower() in IMAGE_COLUMNS and row[name] is not None), None)
    return row if found is None else {**row, image_column: row[found]}


__all__ = ["IMAGE_COLUMNS", "with_image"]
