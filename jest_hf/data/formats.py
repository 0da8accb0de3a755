# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Image-text data as people have them: webdataset tars, CSV files with paths of images, tables of addresses.

[`~jest_hf.data.load_source`] reads the files with the help of all but [`find_columns`], which finds the columns of
images and captions for the flags of a command.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from jest_hf.data.captions import CAPTION_COLUMNS
from jest_hf.data.columns import IMAGE_COLUMNS


ADDRESSES = ("url", "image_url", "img_url", "image_link")  # columns of tables of addresses, in lower case
_SAMPLES = 5  # values of a column that its type is read from, as datasets does
_DOWNLOAD = (
    "download them first, e.g. with img2dataset (--url_list, --url_col, --caption_col, --output_format webdataset), "
    "and pass the tars as the data set"
)


def separator_of(path: str) -> str:
    """Return what separates the columns of a CSV or TSV file: of tab, comma, semicolon and bar the most frequent one
    in its first line."""
    with open(path, encoding="utf-8", errors="replace") as file:
        first = file.readline(1 << 20)
    return max("\t,;|", key=first.count) if any(one in first for one in "\t,;|") else ","


def features_of(files: Sequence[str]) -> datasets.Features | None:
    """Return the columns of webdataset tars whose samples have different files, such as a `jpg` or a `png`.

    Reads the headers of all tars, and of each suffix the first few files. `datasets` itself takes the columns of the
    first samples for those of all.

    Returns:
        `datasets.Features`, or `None` if every sample has the same files: `datasets` finds these itself.
    """
    values: dict[str, list[Any]] = {}
    kinds: set[frozenset[str]] = set()
    for path in files:
        key, suffixes = None, set[str]()
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    place, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    if not member.isfile() or not stem or not suffix:
                        continue
                    if key not in (None, (place, stem)):
                        kinds.add(frozenset(suffixes))
                        suffixes = set()
                    key = (place, stem)
                    suffixes.add(suffix)
                    if len(values.setdefault(suffix, [])) < _SAMPLES:
                        values[suffix].append(_decoded(suffix, tar, member))
            kinds.add(frozenset(suffixes))
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"{path} is no whole tar file ({error}); make it again, or leave it out.") from error
    if len(kinds - {frozenset()}) < 2:
        return None
    columns = {
        name: datasets.Features.from_arrow_schema(_table(name, some).schema)[name] for name, some in values.items()
    }
    columns |= {name: datasets.Image() for name in values if name.rpartition(".")[2].lower() in IMAGE_COLUMNS}
    return datasets.Features({**columns, "__key__": datasets.Value("string"), "__url__": datasets.Value("string")})


def _table(name: str, values: list[Any]) -> pa.Table:
    return pa.Table.from_pylist([{name: value} for value in values])


def _decoded(suffix: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    if suffix.rpartition(".")[2].lower() in IMAGE_COLUMNS:
        return None
    file = tar.extractfile(member)
    content = b"" if file is None else file.read()
    decode = WebDataset.DECODERS.get(suffix.rpartition(".")[2].lower())
    return content if decode is None else decode(content)


def find_columns(
    dataset: Any, image_column: str | None, caption_column: str | None, *, spec: str, option: str = "dataset"
) -> tuple[str, str | None]:
    """Find the columns of images and captions that the flags of a command name.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): The data.
        image_column (`str`, *optional*): Name of the column, or several with semicolons between them, of which the
            first that exists counts: `"jpg;png;webp"`. Default: `image`, or the first suffix of an image, as
            webdataset has them.
        caption_column (`str`, *optional*): As `image_column`: `"txt;json"`. Default: `None`, the default of the
            collator, or `txt`, as webdataset has it.
        spec (`str`): Name of the data, for error messages.
        option (`str`, *optional*, defaults to `"dataset"`): Option that names the data, for error messages.

    Returns:
        The column of the images and the column of the captions.

    Raises:
        ValueError: for data that have the addresses of images, and no images.
    """
    columns = list(dataset.column_names or next(iter(dataset), ()))  # those of a stream may be unknown
    image = _first(image_column or "image", columns)
    address = image if image in columns and _holds_addresses(dataset, image) else None
    if image not in columns and image_column in (None, "image"):
        image = next((name for name in columns if name.lower() in IMAGE_COLUMNS), image)
        address = None if image in columns else next((name for name in columns if name.lower() in ADDRESSES), None)
    if address is not None:
        raise ValueError(f"{option}={spec!r} has no images, only their addresses (column {address!r}); {_DOWNLOAD}.")
    caption = None if caption_column is None else _first(caption_column, columns)
    if caption is None and "txt" in columns and not any(name in columns for name in CAPTION_COLUMNS):
        caption = "txt"
    return image, caption


def _first(names: str, columns: Sequence[str]) -> str:
    """The first of several names, with semicolons between them, that is a column; otherwise the first."""
    every = [name.strip() for name in names.split(";")]
    return names if names in columns else next((name for name in every if name in columns), every[0])


def _holds_addresses(dataset: Any, column: str) -> bool:
    first = _first_value(dataset, column) if isinstance(dataset, datasets.Dataset) else None
    return isinstance(first, str) and first.startswith(("http://", "https://"))


def _first_value(dataset: datasets.Dataset, column: str) -> Any:
    """The first value of a column of strings that is not empty; `None` for another column."""
    if getattr(dataset.features[column], "dtype", None) not in ("string", "large_string"):
        return None
    return next((one for one in dataset.select(range(min(100, len(dataset))))[column] if one), None)


def with_files(dataset: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """Return a table whose relative paths of image files start at a folder, that of the table, if they lie there."""
    for column in dataset.column_names:
        first = _first_value(dataset, column)
        if first is None or Path(first).suffix[1:].lower() not in IMAGE_COLUMNS or "://" in first:
            continue
        if not os.path.isabs(first) and (folder / first).is_file():
            paths = [one if one is None or os.path.isabs(one) else str(folder / one) for one in dataset[column]]
            order = dataset.column_names
            dataset = dataset.remove_columns([column]).add_column(column, paths).select_columns(order)
    return dataset


def with_caption(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return samples whose caption is only in their `json` (`text`, `caption` or `captions`) with a column of it."""
    columns = dataset.column_names
    inner = dataset.features.get("json")
    if not isinstance(inner, dict) or any(name in columns for name in (*CAPTION_COLUMNS, "txt")):
        return dataset
    name = next((one for one in CAPTION_COLUMNS if one in inner), None)
    if name is None:
        return dataset
    return dataset.add_column(name, [None if one is None else one[name] for one in dataset["json"]])


__all__ = ["features_of", "find_columns", "separator_of", "with_caption", "with_files"]
