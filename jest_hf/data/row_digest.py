# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Short digests of rows: of a sample of a data set, and of the image and the captions of each row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from os import PathLike, path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from jest_hf.data.broken import BrokenRow
from jest_hf.data.captions import CAPTION_COLUMNS, BrokenCaption, usable_captions
from jest_hf.data.fingerprint import content_of, table_of
from jest_hf.data.rows import Rows
from jest_hf.images.decoding import DecodedImage
from jest_hf.images.reading import BrokenImage, read_encoded


SAMPLED_ROWS = 16
PLAIN = (str, int, float, bool, type(None))


def digest_row(row: Mapping[str, Any], image_column: str | None) -> str:
    """Return the digest of one row, 16 hexadecimal digits; `image_column` holds an image or the name of its file."""
    return _digest([_of_row(row, image_column)])


def digest_rows(dataset: Any, image_column: str | None, columns: Collection[str] | None = None) -> str | None:
    """Return the digest of 16 rows of map-style data, or of some of their columns; `None` for rows that are different
    whenever they are read, and if none can be read. The digest has a mark for a single row that cannot be read. No
    image is decoded here.

    Example:

    ```python
    >>> from jest_hf.data.row_digest import digest_rows
    >>> digest_rows([{"text": "a"}], None) == digest_rows([{"text": "b"}], None)
    False

    ```
    """
    found = _sample(dataset, image_column, columns)
    return None if found is None else _digest(found)


def digests_of_rows(
    dataset: Any, image_column: str | None, columns: Collection[str] | None = None
) -> list[str] | None:
    """Return the digest of each of the 16 rows of [`digest_rows`], `""` for a row that cannot be read."""
    found = _sample(dataset, image_column, columns)
    return None if found is None else ["" if row is None else _digest([row]) for row in found]


def _sample(dataset: Any, image_column: str | None, columns: Collection[str] | None) -> list[Any] | None:
    """Return 16 rows as JSON, `None` in the place of a row that cannot be read; `None` as [`digest_rows`] does."""
    rows = Rows(dataset, image_column)
    numbers = np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).astype(np.int64)).tolist() if len(rows) else []

    def read(number: int) -> list[Any] | None:
        row = rows[number]
        if isinstance(row, BrokenRow):
            return None
        return _of_row(row if columns is None else {name: row[name] for name in columns if name in row}, image_column)

    try:
        found, again = ([read(number) for number in numbers] for _ in range(2))
    except Exception:  # of a row that has values of a kind of the user
        return None
    # A row that could be read once only is one that cannot be read.
    pairs = [(None, None) if None in pair else pair for pair in zip(found, again, strict=True)]
    if any(first != second for first, second in pairs):  # a transform that draws gives other rows each time
        return None
    return None if pairs and all(first is None for first, _ in pairs) else [first for first, _ in pairs]


def content_digests(rows: Sequence[Mapping[str, Any]], image_column: str, caption_column: str | None = None) -> Tensor:
    """Return 64 bits of a hash of the image and of the captions of each row, int64 `[n, 2]`; 0 for what is not there.

    Of an image the bytes of its file are hashed, and of one in memory its pixels. There is no digest of an image from
    an image cache, and none of an image or captions that cannot be read.

    Args:
        rows (sequence of mappings): The rows. Call [`with_encoded`] first where the images are read afterwards: each
            file is then read once.
        image_column (`str`): Column of the images.
        caption_column (`str`, *optional*): Column of the captions; by default the first of `text`, `caption` and
            `captions` that the rows have.

    Example:

    ```python
    >>> from jest_hf.data.row_digest import content_digests
    >>> found = content_digests([{"image": b"one", "text": "a"}, {"image": b"two", "text": "a"}], "image")
    >>> (found[0] == found[1]).tolist()
    [False, True]

    ```
    """
    if caption_column is None and len(rows):
        known = [row for row in rows if not isinstance(row, BrokenRow)]
        caption_column = next((name for name in CAPTION_COLUMNS if any(name in row for row in known)), None)
    found = [(_of_image(row.get(image_column)), _of_captions(row.get(str(caption_column)))) for row in rows]
    return torch.from_numpy(np.array(found, dtype=np.uint64).reshape(len(rows), 2).view(np.int64))


def is_fixed(rows: Rows) -> bool:
    """Return whether rows are the same whenever they are read, as far as that is known: not of a transform, and not of
    a torch data set, which may draw."""
    return table_of(rows) is not None or isinstance(rows.dataset, list | tuple)


def with_encoded(row: Mapping[str, Any], image_column: str) -> Mapping[str, Any]:
    """Return a row with the bytes of its image file in place of the file's name; as it is if they cannot be read."""
    image = row.get(image_column)
    name = image.get("path") if isinstance(image, Mapping) and image.get("bytes") is None else image
    if not isinstance(name, str | PathLike):
        return row
    try:
        known = image if isinstance(image, Mapping) else {}  # it may have a mode
        return {**row, image_column: {**known, "bytes": bytes(read_encoded(name)), "path": name}}
    except BrokenImage:  # the collator finds it too, and counts the row
        return row


def _of_image(image: Any) -> int:
    content = b"" if image is None or isinstance(image, DecodedImage) else content_of(image)
    return xxhash.xxh3_64_intdigest(content) or 1 if content else 0


def _of_captions(value: Any) -> int:
    try:
        captions = usable_captions(value)
    except BrokenCaption:
        return 0
    return xxhash.xxh3_64_intdigest(json.dumps(captions).encode()) or 1


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


__all__ = ["content_digests", "digest_row", "digest_rows", "digests_of_rows", "is_fixed", "with_encoded"]
