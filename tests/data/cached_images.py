# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the image cache share: a cache of few rows, in regions of five."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jest_hf.data import image_writer
from jest_hf.data.image_cache import ImageCache
from jest_hf.data.image_writer import write_images
from jest_hf.data.rows import Rows
from jest_hf.images.decoding import decode_pixels
from jest_hf.images.pixels import ImageGeometry
from tests.helpers import (
    random_rows,
)


SIZE = ImageGeometry(size=(16, 16))
REGION = 5 * 16 * 16 * 3  # bytes of five rows: 23 rows are five regions


@pytest.fixture(autouse=True)
def small_regions(monkeypatch):
    monkeypatch.setattr(image_writer, "REGION_BYTES", REGION)
    monkeypatch.setattr(image_writer, "READ_ROWS", 2)


def make(folder, rows=None, geometries=(SIZE,), column="image", **options) -> ImageCache:
    """A cache of 23 random images of 20 x 20 pixels, the fourth of which is broken."""
    return write_images(
        folder, Rows(some_rows() if rows is None else rows), column, geometries, **{"disable_tqdm": True, **options}
    )


def some_rows(n=23):
    rows = random_rows(n, size=20)
    rows[3]["image"] = b"no image"
    return rows


def contents(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def counting(monkeypatch) -> list[int]:
    """Count what is decoded while a cache is written."""
    counted = []
    monkeypatch.setattr(
        image_writer, "decode_pixels", lambda *given, **more: counted.append(1) or decode_pixels(*given, **more)
    )
    return counted
