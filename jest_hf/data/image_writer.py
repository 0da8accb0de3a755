# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Make an image cache: decode and resize every image of a data set once.

1. The rows are divided into regions of about 64 MB. A writer locks a region, and skips it if another has the lock. The
   lock ends with the process, so a writer that is killed leaves no claim. Any number of processes, also of several
   commands and hosts, can write one cache.
2. The region gets its place on the disk first, so that a full disk is an error before anything is decoded. Nothing is
   written through the memory map, in which a full disk would kill the process (SIGBUS).
3. The rows of a region count as written only once their bytes are on the disk. Work that was killed is done again from
   the beginning of its region; the bytes are the same whoever writes them.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers.utils.logging import tqdm

from jest_hf.data.files import read_json, to_json, write_atomically
from jest_hf.data.fingerprint import content_of, describe_images
from jest_hf.data.image_cache import (
    BROKEN,
    FORMAT,
    LOCKS,
    MANIFEST,
    MISSING,
    PIXELS,
    ROWS,
    WRITTEN,
    ImageCache,
    describe_sizes,
    fill,
    find_images,
    open_images,
)
from jest_hf.data.rows import Rows
from jest_hf.files import remove_unfinished
from jest_hf.images.pixels import BrokenImage, Geometry, decode_pixels


logger = logging.getLogger(__name__)

REGION_BYTES = 2**26
READ_ROWS = 32  # rows that are read from the data set at once
READ_TWICE = 8  # rows that show whether a data set of unknown type changes its images
MAX_LOGGED = 10
_WHOLE = 2**62  # the byte of the lock file that stands for the folder


def write_images(
    folder: str | Path,
    rows: Rows,
    image_column: str,
    geometries: Iterable[Geometry],
    *,
    scaled_jpeg_decoding: bool = False,
    num_workers: int = 0,
    disable_tqdm: bool = False,
    tell: Callable[[str], None] = logger.info,
) -> ImageCache:
    """Decode and resize every image, or continue where an earlier call was interrupted.

    Several processes may call this at once, with the same folder and the same data: each writes a part, and all return
    once the cache is whole. A whole cache is only opened.

    Args:
        folder (`str` or `Path`): Folder of the cache; on a file system with locks, if several processes write.
        rows ([`~jest_hf.data.rows.Rows`]): The data.
        image_column (`str`): Column of the images.
        geometries (iterable of [`~jest_hf.images.pixels.Geometry`]): Sizes to make of each image. A row that cannot be
            made in one of them is broken.
        scaled_jpeg_decoding (`bool`, *optional*, defaults to `False`): As in [`~jest_hf.JESTDataCollator`].
        num_workers (`int`, *optional*, defaults to `0`): Processes that decode and write; 0 is this process.
        disable_tqdm (`bool`, *optional*, defaults to `False`): Whether to hide the progress bar.
        tell (`Callable`, *optional*): Takes the sentence with the size of the cache, before it is written.

    Returns:
        [`~jest_hf.data.image_cache.ImageCache`]: the whole cache, opened.

    Raises:
        ValueError: if the folder has a cache of other images or other sizes, or a damaged one, and for data whose
            images differ from one reading to the next.
        OSError: if the disk has not enough room, or a file cannot be written. Finished regions are kept.
    """
    check_rows(rows, image_column)
    images = describe_sizes(geometries, scaled_jpeg_decoding)
    try:
        cache = _begin(Path(folder), images, describe_images(rows, image_column))
    except _CannotWrite as error:
        raise OSError(*error.args) from error
    pending = _pending(cache)
    if pending:
        tell(_check_room(cache))
    waits = False
    while pending:
        _write_regions(cache, rows, pending, waits, num_workers, disable_tqdm)
        # What another writer had locked: it has written these regions once the lock is free, or it was killed.
        pending, waits = _pending(cache), True
    return open_images(folder)


def check_rows(rows: Rows, image_column: str) -> None:
    """Check that the image of a row is the same whenever it is read.

    Raises:
        ValueError: for a data set with a transform (`set_transform`), and for one whose first rows have other images
            when they are read a second time.
    """
    dataset = rows.dataset
    if isinstance(dataset, datasets.Dataset):
        if dataset.format["type"] == "custom":
            raise ValueError(
                "the data set has a transform (set_transform), and an image cache would keep one draw of a random "
                "transform for the whole run; leave image_cache out, or take the transform off."
            )
        return
    for index in range(min(READ_TWICE, len(rows))):
        first, again = (content_of(rows[index].get(image_column)) for _ in range(2))
        if first != again:
            raise ValueError(
                f"the image of row {index} of the {type(dataset).__name__} differs from one reading to the next, and "
                "an image cache would keep one of them for the whole run; leave image_cache out, or take the random "
                "transform out of the data set."
            )
    if not isinstance(dataset, list | tuple):
        logger.warning(
            "The rows of a %s are read with their images, also where these come from the image cache; a "
            "datasets.Dataset can leave them out.",
            type(dataset).__name__,
        )


def _begin(folder: Path, images: dict[str, Any], data: dict[str, Any]) -> ImageCache:
    """Open the cache in a folder after a check that it is the one to write; make an empty one if there is none."""
    cache = find_images(folder)
    if cache is None:
        with _in_words(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, _WHOLE, waits=True):
            if read_json(folder / MANIFEST) is None:  # else another process has made it meanwhile
                _create(folder, {"format": FORMAT, "images": images, "data": data})
        cache = find_images(folder)
        assert cache is not None
    cache.check(images, data)
    return cache


def _create(folder: Path, manifest: dict[str, Any]) -> None:
    """Write an empty cache. Its manifest comes last: a process that is killed before that has made nothing."""
    if (folder / ROWS).exists() and np.fromfile(folder / ROWS, dtype=np.uint8).any():
        raise ValueError(f"{folder} has images without {MANIFEST}; choose another folder, or delete this one.")
    remove_unfinished(folder, MANIFEST)  # of a killed process: who writes the manifest has the lock
    cache = ImageCache(folder, manifest)
    for name, size in ((ROWS, cache.n_rows), (PIXELS, cache.n_bytes)):
        with _File(folder / name) as file:
            file.resize(size)
            if name == ROWS:
                file.allocate(0, size)
            file.sync()
    write_atomically(folder / MANIFEST, to_json(manifest))


def _check_room(cache: ImageCache) -> str:
    """Check that the disk has room for the rows that are not written yet; return a sentence about the size."""
    missing = int(np.count_nonzero(cache.states() == MISSING))
    allocated = (cache.folder / PIXELS).stat().st_blocks * 512
    needed = min(missing * cache.record.itemsize, max(0, cache.n_bytes - allocated))
    free = shutil.disk_usage(cache.folder).free
    size = f"{cache.n_rows:,} rows x {cache.record.itemsize:,} bytes = {_readable(cache.n_bytes)}"
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the image cache in {cache.folder} ({size}) needs {_readable(needed)} more, and the disk has "
            f"{_readable(free)}; make room, or choose a folder on another disk",
        )
    return (
        f"Image cache in {cache.folder}: {size}, of which {_readable(needed)} are to be written; the disk has "
        f"{_readable(free)}."
    )


def _readable(n_bytes: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.2f} {unit}"
    return f"{n_bytes:,} bytes"


def _region_rows(cache: ImageCache) -> int:
    return max(1, REGION_BYTES // cache.record.itemsize)


def _pending(cache: ImageCache) -> list[range]:
    """The regions with rows that are not written yet."""
    states, size = cache.states(), _region_rows(cache)
    starts = np.unique(np.flatnonzero(states == MISSING) // size) * size
    return [range(start, min(start + size, cache.n_rows)) for start in starts.tolist()]


def _write_regions(
    cache: ImageCache, rows: Rows, pending: list[range], waits: bool, num_workers: int, disable_tqdm: bool
) -> None:
    """Write regions in this process or in workers; `OSError` for the first that could not be written."""
    loader: DataLoader[Any] = DataLoader(
        _Regions(cache, rows, pending, waits),
        batch_size=None,
        num_workers=min(num_workers, len(pending)),
        collate_fn=_identity,
        generator=torch.Generator(),  # the seed of the workers: not drawn from the global random state
    )
    progress = tqdm(total=sum(map(len, pending)), desc="Caching images", unit="row", disable=disable_tqdm)
    with progress:
        for region, error in zip(pending, loader, strict=True):
            if error is not None:
                raise OSError(*error)
            progress.update(len(region))


class _Regions(Dataset[Any]):
    """Writes the region that is read from it: the workers of a loader then share the work.

    Args:
        cache ([`ImageCache`]): The cache.
        rows ([`~jest_hf.data.rows.Rows`]): The data.
        regions (list of `range`): The regions to write.
        waits (`bool`): Whether to wait for a region that another process has locked, or to skip it.
    """

    def __init__(self, cache: ImageCache, rows: Rows, regions: list[range], waits: bool) -> None:
        self.cache = cache
        self.rows = rows
        self.regions = regions
        self.waits = waits
        self.n_logged = 0

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, number: int) -> tuple[Any, ...] | None:
        """Return the number and the text of the error of a file that could not be written; else `None`."""
        region = self.regions[number]
        try:
            with _locked(self.cache.folder, region.start, self.waits) as is_ours:
                if is_ours:
                    self._write(region)
        except _CannotWrite as error:  # an exception would come out of a worker with a traceback for a message
            return error.args
        return None

    def _write(self, region: range) -> None:
        folder, record = self.cache.folder, self.cache.record
        states = np.fromfile(folder / ROWS, dtype=np.uint8, count=len(region), offset=region.start)
        if (states != MISSING).all():  # by another writer, since `pending` was made
            return
        size = record.itemsize
        with _File(folder / PIXELS) as file:
            file.allocate(region.start * size, len(region) * size)
            for start in range(region.start, region.stop, READ_ROWS):
                some = list(range(start, min(start + READ_ROWS, region.stop)))
                for index, buffer in zip(some, self._made(some), strict=True):
                    states[index - region.start] = BROKEN if buffer is None else WRITTEN
                    if buffer is not None:
                        file.write(buffer.view(np.uint8).data, index * size)
            file.sync()
        with _File(folder / ROWS) as file:
            file.write(states.data, region.start)

    def _made(self, indices: list[int]) -> Iterator[np.ndarray | None]:
        """Yield the record of each row, `[1]`; `None` for a row whose image cannot be used."""
        cache = self.cache
        scaled = cache.manifest["images"]["scaled_jpeg_decoding"]
        for index, row in zip(indices, self.rows.__getitems__(indices), strict=True):
            record = np.zeros(1, dtype=cache.record)
            try:
                image = decode_pixels(row.get(cache.image_column), cache.geometries, scaled_jpeg_decoding=scaled)
                fill(record, image, cache.geometries)
            except BrokenImage as reason:
                if self.n_logged < MAX_LOGGED:
                    self.n_logged += 1
                    logger.warning("Example %d has no usable image: %s.", index, reason)
                yield None
            else:
                yield record


class _CannotWrite(Exception):
    """A file of a cache could not be written. Its arguments are the number of the error and a sentence."""


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Within, an `OSError` becomes a [`_CannotWrite`] about the file."""
    try:
        yield
    except OSError as error:
        raise _CannotWrite(
            error.errno,
            f"{path} could not be written ({error.strerror}); make room and start again: finished rows are kept",
        ) from error


class _File:
    """A file of a cache, written in place. Every error is a [`_CannotWrite`]."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _in_words(path):
            self.number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def resize(self, size: int) -> None:
        """Make the file `size` zeros long."""
        with _in_words(self.path):
            os.ftruncate(self.number, 0)
            os.ftruncate(self.number, size)

    def allocate(self, start: int, size: int) -> None:
        """Give a part of the file its place on the disk, where the system can."""
        if size and hasattr(os, "posix_fallocate"):
            with _in_words(self.path):
                os.posix_fallocate(self.number, start, size)

    def write(self, data: memoryview, start: int) -> None:
        """Write bytes at a place."""
        with _in_words(self.path):
            while len(data):
                written = os.pwrite(self.number, data, start)
                data, start = data[written:], start + written

    def sync(self) -> None:
        """Wait until all is on the disk."""
        with _in_words(self.path):
            os.fsync(self.number)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.number)


@contextmanager
def _locked(folder: Path, place: int, waits: bool) -> Iterator[bool]:
    """Lock one byte of the lock file of a cache, against other processes, and tell whether it was free.

    The lock goes with the process, and with the first file of that process on the lock file that is closed: so a
    process holds one lock at a time.
    """
    import fcntl  # not on Windows, where a cache can be read

    with _in_words(folder / LOCKS):
        file = os.open(folder / LOCKS, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB), 1, place)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise _CannotWrite(
                    error.errno,
                    f"{folder} is on a file system without locks ({error.strerror}), by which several processes share "
                    "the work; choose a folder on another disk",
                ) from error
            yield False
        else:
            yield True
    finally:
        os.close(file)


def _identity(item: Any) -> Any:
    return item


__all__ = ["check_rows", "write_images"]
