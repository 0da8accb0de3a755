# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Image-text data as people have them: webdataset tars, CSV files with paths of images, tables of addresses.

[`~jest_hf.data.load_source`] reads the files with the help of all but [`find_columns`], which finds the columns of
images and captions for the flags of a command.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from jest_hf.data.captions import CAPTION_COLUMNS
from jest_hf.data.columns import IMAGE_COLUMNS


ADDRESSES = ("url", "image_url", "img_url", "image_link")  # columns of tables of addresses, in lower case
HEAD = 100  # rows at the beginning of a table that say which columns have paths of images
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

    Raises:
        ValueError: for a damaged tar; or, if samples have different files, for a file among the first few of its
            suffix that cannot be read, or has another type than those before it.
    """
    found: dict[str, list[tuple[str, bytes]]] = {}  # of each suffix, names and contents of the first files
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
                    if len(found.setdefault(suffix, [])) < _SAMPLES:
                        file = None if _is_image(suffix) else tar.extractfile(member)
                        found[suffix].append((f"{path}::{member.name}", b"" if file is None else file.read()))
            kinds.add(frozenset(suffixes))
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"{path} is no whole tar file ({error}); make it again, or leave it out.") from error
    if len(kinds - {frozenset()}) < 2:
        return None
    columns = {name: datasets.Image() if _is_image(name) else _feature(name, files) for name, files in found.items()}
    return datasets.Features({**columns, "__key__": datasets.Value("string"), "__url__": datasets.Value("string")})


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2].lower() in IMAGE_COLUMNS


def _feature(suffix: str, files: Sequence[tuple[str, bytes]]) -> Any:
    """The type of a column of webdataset tars, from names and contents of its first files."""
    decode = WebDataset.DECODERS.get(suffix.rpartition(".")[2].lower())
    values = []
    for name, content in files:
        try:
            values.append({suffix: content if decode is None else decode(content)})
            schema = pa.Table.from_pylist(values).schema  # of all so far, so that an error names the file that differs
        except MemoryError:
            raise
        except Exception as error:  # a decoder of webdataset raises what its library does
            raise ValueError(
                f"{name} cannot be read, or is of another type than those before "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); mend it, or leave its sample out."
            ) from error
    return datasets.Features.from_arrow_schema(schema)[suffix]


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
    return next((one for one in dataset.select(range(min(HEAD, len(dataset))))[column] if one), None)


def _is_file_in(folder: Path, value: Any) -> bool:
    """Return whether a value is the relative path of an image file that lies in a folder."""
    if not isinstance(value, str) or "://" in value or os.path.isabs(value):
        return False
    return Path(value).suffix[1:].lower() in IMAGE_COLUMNS and (folder / value).is_file()


def file_columns(rows: pa.Table, folder: Path) -> list[str]:
    """Return the columns that [`with_files`] changes, from the first rows of a table."""
    return [
        name
        for name, kind in zip(rows.column_names, rows.schema.types, strict=True)
        if (pa.types.is_string(kind) or pa.types.is_large_string(kind))
        and _is_file_in(folder, next((one for one in rows[name].to_pylist() if one), None))
    ]


@dataclass(frozen=True)
class _InFolder:
    """A function of `map` that makes relative paths of files in a folder absolute."""

    folder: Path
    columns: list[str]

    def path(self, value: str | None) -> str | None:
        return value if value is None or os.path.isabs(value) else str(self.folder / value)

    def __call__(self, *values: str | None) -> dict[str, str | None]:
        return dict(zip(self.columns, map(self.path, values), strict=True))


@dataclass(frozen=True)
class _FromJson:
    """A function of `map` that copies a field of the `json` of a sample."""

    name: str

    def __call__(self, json: Mapping[str, Any] | None) -> dict[str, Any]:
        return {self.name: None if json is None else json.get(self.name)}


def with_files(dataset: Any, folder: Path, columns: Sequence[str] | None = None) -> Any:
    """Return a table whose relative paths of image files start at a folder, that of the table, if they lie there.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): The table.
        folder (`Path`): The folder, absolute.
        columns (sequence of `str`, *optional*): The columns of a stream with such paths, from [`file_columns`].
    """
    if isinstance(dataset, datasets.IterableDataset):
        names = list(columns or ())
        absolute = _InFolder(folder, names)
        return dataset.map(absolute, input_columns=names, features=dataset.features) if names else dataset
    for column in dataset.column_names:
        if _is_file_in(folder, _first_value(dataset, column)):
            paths = list(map(_InFolder(folder, [column]).path, dataset[column]))
            order = dataset.column_names
            dataset = dataset.remove_columns([column]).add_column(column, paths).select_columns(order)
    return dataset


def with_caption(dataset: Any) -> Any:
    """Return samples whose caption is only in their `json` (`text`, `caption` or `captions`) with a column of it.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): The samples. A stream of unknown columns is
            returned as it is.
    """
    features = dataset.features or {}
    inner = features.get("json")
    if not isinstance(inner, dict) or any(name in features for name in (*CAPTION_COLUMNS, "txt")):
        return dataset
    name = next((one for one in CAPTION_COLUMNS if one in inner), None)
    if name is None:
        return dataset
    caption = _FromJson(name)
    if isinstance(dataset, datasets.IterableDataset):
        features = datasets.Features({**features, name: inner[name]})
        return dataset.map(caption, input_columns=["json"], features=features)
    return dataset.add_column(name, [caption(one)[name] for one in dataset["json"]])


__all__ = ["HEAD", "features_of", "file_columns", "find_columns", "separator_of", "with_caption", "with_files"]
