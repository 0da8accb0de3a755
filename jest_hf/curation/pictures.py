# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of a data set as small pictures with their captions."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from jest_hf.curation.near_duplicates import perceptual_hash
from jest_hf.data.broken import BrokenRow
from jest_hf.data.captions import CAPTION_COLUMNS
from jest_hf.data.rows import Rows
from jest_hf.images.decoding import BrokenImage, decode_image


SIDE = 112  # pixels of the longer side of a thumbnail
MOST_CHARACTERS = 160  # of a caption


@dataclass(frozen=True)
class Picture:
    """
    A row of the data.

    Args:
        title (`str`): Its number, and its key.
        caption (`str`): Its caption, shortened; empty if it is not known.
        note (`str`): A score, or how often it was selected.
        jpeg (`bytes`, *optional*): The thumbnail; `None` if there is no picture.
    """

    title: str
    caption: str
    note: str
    jpeg: bytes | None


class Pictures:
    """
    Makes pictures of the rows of a run.

    Args:
        dataset (*optional*): The data of the run. Without them a picture has a title and a note.
        image_column (`str`): Column of the images.
        caption_column (`str`, *optional*): Column of the captions. Default: the first of text, caption and captions.
        keys (mapping): String keys of rows, by id.
        find (mapping, *optional*): The rows of ids. Default: an id is the number of its row.
    """

    def __init__(
        self,
        dataset: Any,
        image_column: str,
        caption_column: str | None,
        keys: Mapping[int, str],
        find: Mapping[int, int] | None = None,
    ) -> None:
        self.dataset = dataset
        self.image_column, self.caption_column = image_column, caption_column
        self.keys, self.find = keys, find
        self._rows = None if dataset is None else Rows(dataset)
        self._row = lru_cache(maxsize=256)(self._read)

    def of(self, example_id: int, note: str) -> Picture:
        """Return the picture of a row."""
        title = f"row {example_id}" + (f" ({self.keys[example_id]})" if example_id in self.keys else "")
        row, image = self._row(example_id)
        if image is None and self.image_column in row:
            note = f"{note} (the image cannot be read)".strip()
        return Picture(title, self._caption(row), note, None if image is None else _thumbnail(image))

    def hash(self, example_id: int) -> np.ndarray | None:
        """Return the perceptual hash of a row's image, uint8 `[24]`; `None` if it has none that can be read."""
        image = self._row(example_id)[1]
        return None if image is None else perceptual_hash(image)

    def _read(self, example_id: int) -> tuple[Mapping[str, Any], Image.Image | None]:
        place = example_id if self.find is None else self.find.get(example_id)
        if self._rows is None or place is None or not place < len(self._rows):
            return {}, None
        row = self._rows[place]
        if isinstance(row, BrokenRow):
            return row, None
        try:
            image = decode_image(row[self.image_column]) if row.get(self.image_column) is not None else None
        except (BrokenImage, OSError):
            return row, None
        if image is not None:  # not the image itself: hundreds are kept
            image.thumbnail((2 * SIDE, 2 * SIDE))
        return {name: value for name, value in row.items() if name != self.image_column or image is None}, image

    def _caption(self, row: Mapping[str, Any]) -> str:
        column = self.caption_column or next((name for name in CAPTION_COLUMNS if name in row), None)
        value = row.get(column) if column is not None else None
        text = " | ".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "")
        return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def _thumbnail(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


__all__ = ["Picture", "Pictures"]
