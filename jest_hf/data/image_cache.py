# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""An image cache on disk: every image of a data set, decoded and resized, in one memory-mapped file.

    images.json    the sizes of the images, how they were made, and of which data
    pixels.u8      N records, each with the model inputs of one image at every size (uint8 [3, H, W], or patches)
    rows.u8        uint8 [N]: 0 not written, 1 written, 2 could not be decoded
    locks          empty; the processes that write lock its bytes

An image of 224 x 224 pixels takes 150,528 bytes. [`~jest_hf.data.image_writer.write_images`] makes a cache, and
[`open_images`] opens it. The processes of a host share the mapped pages.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jest_hf.data.files import changed, flat, read_json
from jest_hf.images.decoding import DecodedImage
from jest_hf.images.pixels import Geometry, ImageGeometry, PatchGeometry
from jest_hf.images.resizing import resizer


MANIFEST = "images.json"
PIXELS = "pixels.u8"
ROWS = "rows.u8"
LOCKS = "locks"
FORMAT = 1
MISSING, WRITTEN, BROKEN = range(3)
KINDS: dict[str, Any] = {kind.__name__: kind for kind in (ImageGeometry, PatchGeometry)}


class ImageCache:
    """The images of a data set, decoded and resized, on disk.

    Args:
        folder (`Path`): Folder of the cache.
        manifest (`dict`): Contents of the cache's manifest.

    Attributes:
        n_rows (`int`): Rows of the data set (N).
        image_column (`str`): Column of the images.
        geometries (list of [`~jest_hf.images.pixels.Geometry`]): Sizes that each image has in the cache.
        record (`np.dtype`): Model inputs of one image at all sizes, as they lie in the file.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.n_rows: int = manifest["data"]["n_rows"]
        self.image_column: str = manifest["data"]["image_column"]
        self.geometries = [_geometry(size) for size in manifest["images"]["sizes"]]
        self.record = _record(self.geometries)

    @property
    def n_bytes(self) -> int:
        """Bytes of all images, also of those that are not written yet."""
        return self.n_rows * self.record.itemsize

    def image(self, row: int) -> DecodedImage:
        """Return the image of a row at all sizes; nothing is read from the disk before the arrays are."""
        state, columns = self._mapped[0][row], self._mapped[1]
        if state != WRITTEN:
            return DecodedImage(None)
        return DecodedImage(
            {one: {name: column[row] for name, column in of_one.items()} for one, of_one in columns.items()}
        )

    def prefetch(self, rows: Sequence[int]) -> None:
        """Have the kernel read some images into memory, all at once, before they are used one by one.

        From a cold disk a row then takes a half to a fifth of the time; from memory it takes a microsecond more.
        """
        pages, size = self._mapped[2], self.record.itemsize
        for row in rows if hasattr(pages, "madvise") else ():
            start = row * size // mmap.PAGESIZE * mmap.PAGESIZE
            pages.madvise(mmap.MADV_WILLNEED, start, (row + 1) * size - start)

    def states(self) -> np.ndarray:
        """Return what is known of each row, uint8 `[N]`: not written, written, or broken."""
        return np.fromfile(self.folder / ROWS, dtype=np.uint8)

    def difference(self, images: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> str | None:
        """Return the first difference from what a run needs, as a part of a sentence; `None` if the cache serves.

        Args:
            images (`Mapping`): Sizes and decoding, from [`describe_sizes`].
            data (`Mapping`, *optional*): Images of the run, from
                [`~jest_hf.data.fingerprint.describe_images`]. Not compared if it is left out.
        """
        own = self.manifest["images"]
        name = "scaled_jpeg_decoding"
        if own[name] != images[name]:
            return f"{name} was {own[name]}, and in this run it is {images[name]}"
        # The size at which a JPEG is decoded depends on all sizes that are made of it.
        together = images[name] and len(images["sizes"]) != len(own["sizes"])
        if together or any(size not in own["sizes"] for size in images["sizes"]):
            return f"it has images of {_named(own['sizes'])}, and this run needs {_named(images['sizes'])}"
        if data is None:
            return None
        ours = dict(flat(json.loads(json.dumps(data)), "data"))
        return changed(ours, dict(flat(self.manifest["data"], "data")))

    def check(self, images: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Check that the cache serves a run; arguments as in [`~ImageCache.difference`].

        Raises:
            ValueError: if it does not; the message names the first difference.
        """
        found = self.difference(images, data)
        if found is not None:
            raise ValueError(
                f"the image cache in {self.folder} does not match this run: {found}; choose another folder, or delete "
                "this one."
            )

    @cached_property
    def _mapped(self) -> tuple[np.ndarray, dict[Geometry, dict[str, np.ndarray]], mmap.mmap]:
        """The states of rows; by size, the arrays of all rows, in the mapped file; and the mapped file itself."""
        with open(self.folder / PIXELS, "rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        records = np.frombuffer(pages, dtype=self.record, count=self.n_rows)
        columns = {
            geometry: {name: records[_field(number, name)] for name in geometry.empty(0)}
            for number, geometry in enumerate(self.geometries)
        }
        return self.states(), columns, pages

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_mapped"}  # each process maps itself

    def __repr__(self) -> str:
        return f"ImageCache({str(self.folder)!r}, n_rows={self.n_rows}, sizes={self.geometries})"


def describe_sizes(geometries: Iterable[Geometry], scaled_jpeg_decoding: bool = False) -> dict[str, Any]:
    """Describe the sizes that images are made in, and how, for the manifest of a cache.

    Args:
        geometries (iterable of [`~jest_hf.images.pixels.Geometry`]): The sizes; equal ones are made once.
        scaled_jpeg_decoding (`bool`, *optional*, defaults to `False`): As in [`~jest_hf.JESTDataCollator`].
    """
    sizes = [
        {"kind": type(one).__name__, **asdict(one), "resized_by": resizer(one.resample)}
        for one in dict.fromkeys(geometries)
    ]
    described: dict[str, Any] = json.loads(json.dumps({"scaled_jpeg_decoding": scaled_jpeg_decoding, "sizes": sizes}))
    return described  # with lists for tuples, as a manifest that was read


def open_images(folder: str | Path) -> ImageCache:
    """Open a whole image cache.

    Args:
        folder (`str` or `Path`): Folder of the cache.

    Raises:
        FileNotFoundError: if the folder has no cache, or an unfinished one.
        ValueError: if a file is damaged, or the format of the cache is unknown.
    """
    cache = find_images(Path(folder))
    missing = None if cache is None else np.count_nonzero(cache.states() == MISSING)
    if cache is None or missing:
        what = (
            "no image cache" if cache is None else f"an unfinished image cache ({missing} of {cache.n_rows} rows lack)"
        )
        raise FileNotFoundError(f"{folder} has {what}; run `jest-hf cache-images --output_dir {folder}` first.")
    return cache


def find_images(folder: Path) -> ImageCache | None:
    """Return the cache in a folder, whole or not; `None` if there is none.

    Raises:
        ValueError: if a file is damaged, or the format of the cache is unknown.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        return None
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"the image cache in {folder} has format {manifest.get('format')!r}, and this version of jest_hf reads "
            f"format {FORMAT}; delete it, and make a new one with `jest-hf cache-images`."
        )
    cache = ImageCache(folder, manifest)
    for name, expected in ((PIXELS, cache.n_bytes), (ROWS, cache.n_rows)):
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != expected:
            raise ValueError(
                f"{path} {'is missing' if size is None else f'has {size} bytes'}, and the image cache needs it with "
                f"{expected} bytes; delete the folder, and make a new one with `jest-hf cache-images`."
            )
    return cache


def fill(record: np.ndarray, image: np.ndarray, geometries: Collection[Geometry]) -> None:
    """Write the model inputs of a decoded image (uint8 `[H, W, 3]`) into an array of one record, in place."""
    for number, geometry in enumerate(geometries):
        for name, array in geometry.encode(image).items():
            record[_field(number, name)][0] = array


def _record(geometries: Sequence[Geometry]) -> np.dtype[np.void]:
    return np.dtype(
        [
            (_field(number, name), array.dtype, array.shape[1:])
            for number, geometry in enumerate(geometries)
            for name, array in geometry.empty(1).items()
        ]
    )


def _field(number: int, name: str) -> str:
    return f"{number}.{name}"


def _geometry(size: Mapping[str, Any]) -> Geometry:
    fields = {name: value for name, value in size.items() if name not in ("kind", "resized_by")}
    made: Geometry = KINDS[size["kind"]](
        **{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    )
    return made


def _named(sizes: Iterable[Mapping[str, Any]]) -> str:
    """Return the settings of some sizes in words: `size=(224, 224), bicubic by torch`."""
    return " and ".join(
        ", ".join(
            f"{name}={tuple(value) if isinstance(value, list) else value}"
            for name, value in size.items()
            if value is not None and name not in ("kind", "resample", "resized_by")
        )
        + f", {Image.Resampling(size['resample']).name.lower()} by {size['resized_by']}"
        for size in sizes
    )


__all__ = ["ImageCache", "describe_sizes", "find_images", "open_images"]
