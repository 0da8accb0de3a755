# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Write rows of a data set as they are: images in their original bytes, never decoded; a few rows in memory at a time.

`"parquet"`: `data/train-00000-of-00002.parquet`, a folder for `datasets.load_dataset`. `"webdataset"`:
`data/train-00000.tar`, in which a row is an image file, a `.txt` with its caption and a `.json` with its other
columns.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import embed_table_storage
from PIL import Image


BATCH_ROWS = 256
SHARD_BYTES = 500_000_000
SUFFIXES = {"JPEG": "jpg"}  # of image formats that are not the format's name


def column_names(dataset: datasets.Dataset, added: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each added column in the curated data: its own or, where the data have a column of this
    name, the next free one (`learnability_2`)."""
    taken, names = set(dataset.column_names), {}
    for name in added:
        free = (f"{name}{suffix}" for suffix in ("", *(f"_{number}" for number in range(2, len(taken) + 3))))
        names[name] = next(one for one in free if one not in taken)
        taken.add(names[name])
    return names


def write_parquet(folder: Path, dataset: datasets.Dataset, rows: np.ndarray, added: Mapping[str, np.ndarray]) -> None:
    """Write rows as Parquet files of at most about 500 MB.

    Args:
        folder (`Path`): An empty folder.
        dataset (`datasets.Dataset`): The data.
        rows (`np.ndarray`): Numbers of the rows to write, int64 `[n]`.
        added (`Mapping`): Columns to add, by names that the data do not have, `[n]` each.
    """
    (folder / "data").mkdir()
    paths: list[Path] = []
    writer = None
    try:
        for table in _tables(dataset, rows, added):
            if writer is None:
                paths.append(folder / "data" / f"train-{len(paths):05d}.parquet")
                writer = pq.ParquetWriter(paths[-1], table.schema, compression="snappy")
            writer.write_table(table)
            if paths[-1].stat().st_size >= SHARD_BYTES:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()
    for number, path in enumerate(paths):
        path.rename(path.with_name(f"train-{number:05d}-of-{len(paths):05d}.parquet"))


def write_webdataset(
    folder: Path,
    dataset: datasets.Dataset,
    rows: np.ndarray,
    added: Mapping[str, np.ndarray],
    image_column: str | None = None,
    text_column: str | None = None,
) -> None:
    """Write rows as tar files of at most about 500 MB: image files as they are, `text_column` as `.txt` files.

    The key of a row is its `__key__` if all kept rows have different ones, otherwise its number in the data set.
    """
    (folder / "data").mkdir()
    features = dataset.features
    images = [
        name for name, feature in features.items() if isinstance(feature, datasets.Image) or name == image_column
    ]
    keys = _keys(dataset, rows)
    place, number, archive = 0, 0, None
    try:
        for table in _tables(dataset, rows, added):
            for row in table.to_pylist():
                if archive is None:
                    archive = tarfile.open(folder / "data" / f"train-{number:05d}.tar", "w")  # noqa: SIM115
                for suffix, content in _files(row, images, text_column):
                    about = tarfile.TarInfo(f"{keys[place]}.{suffix}")
                    about.size = len(content)
                    archive.addfile(about, io.BytesIO(content))
                place += 1
                if archive.offset >= SHARD_BYTES:
                    archive.close()
                    archive, number = None, number + 1
    finally:
        if archive is not None:
            archive.close()


WRITERS = ("parquet", "webdataset")


def _tables(dataset: datasets.Dataset, rows: np.ndarray, added: Mapping[str, np.ndarray]) -> Iterator[pa.Table]:
    """Yield the rows in batches, with the bytes of image files that the data only name."""
    features = dataset.features.copy()
    for name, values in added.items():
        features[name] = datasets.Value(str(values.dtype))
    schema = features.arrow_schema
    undecoded = dataset.with_format("arrow")  # which never decodes, and drops a transform
    for start in range(0, len(rows), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        table = undecoded.select(rows[part])[:]
        for name, values in added.items():
            table = table.append_column(name, pa.array(values[part]))
        table = table.replace_schema_metadata(schema.metadata)  # an undecoded image has the same type in Arrow
        yield embed_table_storage(table).replace_schema_metadata(schema.metadata)


def _keys(dataset: datasets.Dataset, rows: np.ndarray) -> list[str]:
    numbered = [f"{row:09d}" for row in rows.tolist()]
    if "__key__" not in dataset.column_names:
        return numbered
    named = dataset.select(rows).select_columns(["__key__"]).with_format(None)[:]["__key__"]
    usable = len(set(named)) == len(named) and not any(not name or "." in name.rpartition("/")[2] for name in named)
    return list(named) if usable else numbered


def _files(row: Mapping[str, Any], images: list[str], text_column: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a row: suffix and content."""
    others: dict[str, Any] = {}
    for name, value in row.items():
        if name in images and value is not None:
            image = {"bytes": value} if isinstance(value, bytes) else value
            kind = _suffix(image)
            yield kind if len(images) == 1 else f"{name}.{kind}", image["bytes"]
        elif name == text_column and isinstance(value, str):
            yield "txt", value.encode()
        elif isinstance(value, bytes):
            yield name, value
        elif name == "json" and isinstance(value, Mapping):  # of a webdataset: its fields stay where they were
            others = {**value, **others}
        elif name not in ("__key__", "__url__"):
            others[name] = value
    yield "json", json.dumps(others, default=str).encode()


def _suffix(image: Mapping[str, Any]) -> str:
    try:
        with Image.open(io.BytesIO(image["bytes"])) as opened:  # reads the header alone
            kind = opened.format or ""
            return SUFFIXES.get(kind, kind.lower())
    except OSError:
        return Path(image.get("path") or "").suffix.lstrip(".") or "img"


def write_uids(path: Path, uids: list[str]) -> None:
    """Write DataComp's list of a subset: sorted uids of 128 bits, each as two uint64.

    Raises:
        ValueError: for a uid that is no hexadecimal number of 32 digits.
    """
    strange = [uid for uid in uids if re.fullmatch(r"[0-9a-fA-F]{32}", str(uid)) is None]
    if strange:
        raise ValueError(f"the uid {strange[0]!r} is no hexadecimal number of 32 digits, as DataComp's are.")
    pairs = [(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids]
    np.save(path, np.sort(np.array(pairs, dtype=np.dtype("u8,u8"))))


__all__ = ["WRITERS", "column_names", "write_parquet", "write_uids", "write_webdataset"]
