# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Load rows from the built-in scenes, from files on this disk, or from a data set on the Hub.

A path on this disk never causes a request to the network. A name that looks like a path but does not exist is an error
and not a Hub id.
"""

from __future__ import annotations

import argparse
import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jest_hf.data.formats import HEAD, features_of, file_columns, find_columns, separator_of, with_caption, with_files
from jest_hf.data.scenes import SPLIT_SIZES, load_scenes
from jest_hf.data.subset import select_subset
from jest_hf.flags import proposal, source_of


BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tar": "webdataset",
}


def load_named(options: argparse.Namespace) -> datasets.Dataset:
    """Load the data that the flags of [`~jest_hf.flags.add_source_arguments`] name. The columns of images and captions
    in `options` become those that the data have."""
    rows = load_source(**source_of(options))
    captions = getattr(options, "caption_column", None)
    images, captions = find_columns(rows, options.image_column, captions, spec=options.dataset)
    if images in rows.column_names and images != "image":
        options.image_column = images
    if hasattr(options, "caption_column"):
        options.caption_column = captions
    return rows


def load_source(
    spec: str,
    *,
    split: str | None = None,
    name: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    revision: str | None = None,
    max_rows: int | None = None,
    where: Mapping[str, Any] | None = None,
    subset: str | Path | None = None,
    streaming: bool = False,
) -> Any:
    """Load the rows of a data set.

    Args:
        spec (`str`): One of
            - `"scenes:web"` (or another split of [`load_scenes`]);
            - a file or a glob of parquet, arrow, json(l), csv, tsv or webdataset (`.tar`) files. The separator of
              a csv file is found in its first line, and relative paths of images start at its folder, also where the
              files of a glob have several separators or folders; a webdataset
              with images of several formats has a column for each, of which `image_column` may name any one, and its
              captions may be in its `json`;
            - a folder: written by `save_to_disk`, of such files, or of images (with `metadata.csv`);
            - the id of a data set on the Hub, or the name of a `datasets` builder with `data_files`.
        split (`str`, *optional*): The split; required if there are several.
        name (`str`, *optional*): Configuration of the data set ("subset" on the Hub).
        data_files (`str`, sequence or mapping of `str`, *optional*): As in `datasets.load_dataset`.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        max_rows (`int`, *optional*): Number of rows to keep, the first ones (after `where`); by default all.
        where (`Mapping[str, Any]`, *optional*): Keep the rows whose column equals the value, or is one of the values:
            `{"split": "train", "source": ["noto", "fxemoji"]}`.
        subset (`str` or `Path`, *optional*): Keep the rows of a list of rows, a Parquet file of `jest-hf curate
            --list`. The rows are numbered as they are after `where` and `max_rows`.
        streaming (`bool`, *optional*, defaults to `False`): Whether to read rows as they come, and store none. The
            rows are the same, except that a webdataset has the columns of its first tar.

    Returns:
        `datasets.Dataset`, map-style; with `streaming` a `datasets.IterableDataset`.

    Raises:
        FileNotFoundError: If `spec` looks like a path and does not exist.
        ValueError: For a split, column or kind of file that does not exist, for damaged files, for a `subset` of
            other data or with `streaming`, or if no row is left (with `streaming` that is not known).

    Example:

    ```python
    >>> from jest_hf.data import load_source
    >>> rows = load_source("scenes:web", max_rows=50)
    >>> len(rows), sorted(set(rows["noise"]))
    (50, ['aligned', 'boilerplate', 'near-duplicate', 'shuffled'])

    ```
    """
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows={max_rows} must be at least 1; leave max_rows out to keep all rows.")
    if streaming and subset is not None:
        raise ValueError(f"subset={str(subset)!r} needs rows that can be read by number; leave out streaming=True.")
    if spec == "scenes" or spec.startswith("scenes:"):
        # Rows that max_rows would drop need not be drawn.
        loaded = load_scenes(_scenes_split(spec, split), n=None if where else max_rows)
    else:
        if _looks_local(spec):
            loaded = _load_local(spec, name, data_files, streaming)
        else:
            # With the split given, only the files of this split are downloaded.
            options = {"name": name, "data_files": data_files, "revision": revision, "split": split}
            loaded = _load(spec, spec, **options, streaming=streaming)
        loaded = _choose_split(loaded, split, spec)
    if streaming:
        return _stream(loaded, where, max_rows, spec)
    if where:
        loaded = _keep(loaded, where, spec)
    if max_rows is not None:
        loaded = loaded.select(range(min(max_rows, len(loaded))))
    return loaded if subset is None else select_subset(loaded, subset)


def _scenes_split(spec: str, split: str | None) -> str:
    named = spec.removeprefix("scenes").removeprefix(":")
    if named and split and named != split:
        raise ValueError(f"{spec!r} and split={split!r} name different splits; pass one of them.")
    if not (named or split):
        raise ValueError(f"'scenes' needs a split; write 'scenes:' and one of {', '.join(SPLIT_SIZES)}.")
    return named or str(split)


def _looks_local(spec: str) -> bool:
    """Return whether `spec` exists on this disk, or cannot be a Hub id (`name` or `owner/name`)."""
    return (
        Path(spec).expanduser().exists()
        or glob.has_magic(spec)
        or spec.startswith((".", "/", "~"))
        or Path(spec).suffix in BUILDERS
        or len(Path(spec).parts) > 2
    )


@contextmanager
def _named(spec: str) -> Iterator[None]:
    """Make an error of `datasets` one of one line, which names the data. What is wrong with the data is a
    `ValueError`."""
    try:
        yield
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"spec={spec!r} is neither here nor on the Hub, as far as you may see ({error})"
        ) from error
    except (datasets.exceptions.DatasetsError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"spec={spec!r} cannot be loaded ({_cause(error)}); check the files.") from error
    except OSError as error:
        raise OSError(f"spec={spec!r} cannot be loaded ({_cause(error)}); check the name and the network.") from error


def _load(spec: str, *arguments: Any, **options: Any) -> Any:
    """As `datasets.load_dataset`, with the errors of [`_named`]."""
    with _named(spec):
        return datasets.load_dataset(*arguments, **options)


def _head(stream: datasets.IterableDataset, spec: str) -> pa.Table:
    """The first rows of a stream, undecoded; an empty table if it has none."""
    with _named(spec):
        return next(iter(stream.with_format("arrow").iter(batch_size=HEAD)), pa.table({}))


def _cause(error: BaseException) -> str:
    """The first cause of an error of `datasets`, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, FileNotFoundError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@dataclass(frozen=True)
class _HasValues:
    """A function of `filter` that keeps the rows whose values are among those wanted; loader workers can get it."""

    wanted: list[list[Any]]

    def __call__(self, *values: Any) -> bool:
        return all(value in those for value, those in zip(values, self.wanted, strict=True))


def _stream(loaded: Any, where: Mapping[str, Any] | None, max_rows: int | None, spec: str) -> datasets.IterableDataset:
    """Return the rows as a stream, with the conditions applied as they come."""
    stream = loaded.to_iterable_dataset() if isinstance(loaded, datasets.Dataset) else loaded
    if where:
        _check_columns(where, stream.column_names or _head(stream, spec).column_names, spec)
        schema = None if stream.features is None else stream.features.arrow_schema
        wanted = [
            _values(where, name) if schema is None else _wanted(where, name, schema.field(name).type).to_pylist()
            for name in where
        ]
        stream = stream.filter(_HasValues(wanted), input_columns=list(where))
    return stream if max_rows is None else stream.take(max_rows)


def _load_local(spec: str, name: str | None, data_files: Any, streaming: bool = False) -> Any:
    path = Path(spec).expanduser()
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path))
        return _load(spec, str(path), name=name, data_files=data_files, streaming=streaming)
    files = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
    if not files:
        raise FileNotFoundError(
            f"spec={spec!r} does not exist; check the path (a relative path starts at {Path.cwd()})."
        )
    suffixes = sorted({Path(file).suffix for file in files})
    if len(suffixes) > 1 or suffixes[0] not in BUILDERS:
        raise ValueError(
            f"spec={spec!r} holds files of kind {', '.join(map(repr, suffixes))}; pass files of one kind of "
            f"{', '.join(BUILDERS)}."
        )
    return _load_files(spec, files, BUILDERS[suffixes[0]], streaming)


def _load_files(spec: str, files: list[str], builder: str, streaming: bool) -> Any:
    """Load files of one kind, in their order. Those with another separator, or with paths of images that start at
    another folder, are loaded apart."""
    options: dict[str, Any] = {"streaming": streaming}
    if builder == "webdataset":
        options["features"] = features_of(files[:1] if streaming else files)
        loaded = _load(spec, builder, data_files=files, **options)
        return type(loaded)({split: with_caption(rows) for split, rows in loaded.items()})
    places = {
        file: _Place(Path(file).absolute().parent, separator_of(file) if builder == "csv" else None) for file in files
    }
    columns: dict[_Place, list[str]] = {}  # a table of one folder finds its own
    if streaming or len({place.folder for place in places.values()}) > 1:
        columns = _columns_of_paths(spec, builder, places)
    has_paths = any(columns.values())
    parts = []
    for _, some in groupby(files, lambda file: places[file] if has_paths else places[file].separator):
        part = list(some)
        place = places[part[0]]
        rows = _load(spec, builder, data_files=part, **options, **place.options)["train"]
        # Rows of several folders stay as they are: no file of theirs has paths that start at its folder.
        parts.append(with_files(rows, place.folder, columns.get(place)) if has_paths or not columns else rows)
    with _named(spec):
        if not streaming:  # the columns and types of the first files, as in files that are loaded together
            kinds = parts[0].features
            parts = [rows if rows.features == kinds else rows.cast(kinds) for rows in parts]
        return {"train": parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)}


class _Place(NamedTuple):
    """What files have in common that are loaded together."""

    folder: Path
    separator: str | None  # of CSV files

    @property
    def options(self) -> dict[str, str]:
        return {} if self.separator is None else {"sep": self.separator}


def _columns_of_paths(spec: str, builder: str, places: Mapping[str, _Place]) -> dict[_Place, list[str]]:
    """Return the columns whose paths of images start at the folder of their file, from the first file of a place."""
    firsts = {places[file]: file for file in reversed(list(places))}
    columns = {}
    for separator in {place.separator for place in firsts}:
        some = [place for place in firsts if place.separator == separator]
        # One split for each folder, since each call of `load_dataset` takes about 0.1 s.
        files = {f"folder_{number}": [firsts[place]] for number, place in enumerate(some)}
        heads = _load(spec, builder, data_files=files, streaming=True, **some[0].options)
        for number, place in enumerate(some):
            columns[place] = file_columns(_head(heads[f"folder_{number}"], spec), place.folder)
    return columns


def _choose_split(loaded: Any, split: str | None, spec: str) -> Any:
    if isinstance(loaded, datasets.Dataset | datasets.IterableDataset):
        return loaded
    available = ", ".join(loaded)
    if split is None and len(loaded) > 1:
        raise ValueError(
            f"spec={spec!r} has several splits; set split={next(iter(loaded))!r}, or another of {available}."
        )
    if split is not None and split not in loaded:
        raise ValueError(
            f"split={split!r} is not a split of {spec!r}{proposal(split, list(loaded))}; choose one of {available}, "
            f"or filter by a column, e.g. where={{'split': {split!r}}}."
        )
    return loaded[next(iter(loaded)) if split is None else split]


def _keep(dataset: datasets.Dataset, where: Mapping[str, Any], spec: str) -> datasets.Dataset:
    """Return the rows that match every condition. Reads only the columns in `where`, and no image."""
    _check_columns(where, dataset.column_names, spec)
    table = dataset.select_columns(list(where)).with_format("arrow")[:]
    mask = np.ones(len(dataset), dtype=bool)
    for column in where:
        mask &= pc.is_in(table[column], value_set=_wanted(where, column, table[column].type)).to_numpy()
    if not mask.any():
        raise ValueError(f"where={dict(where)!r} matches no row of {spec!r}; pass fewer conditions or other values.")
    return dataset.select(np.flatnonzero(mask))


def _check_columns(where: Mapping[str, Any], columns: Sequence[str], spec: str) -> None:
    missing = sorted(set(where) - set(columns))
    if missing:
        raise ValueError(
            f"where={dict(where)!r} names the column {missing[0]!r}, which {spec!r} does not have"
            f"{proposal(missing[0], columns)}; name one of {', '.join(columns)}."
        )


def _values(where: Mapping[str, Any], column: str) -> list[Any]:
    """The values of a column that a condition keeps."""
    return list(where[column]) if isinstance(where[column], (list, tuple)) else [where[column]]


def _wanted(where: Mapping[str, Any], column: str, kind: pa.DataType) -> pa.Array:
    """The values of a column that a condition keeps, as the type of the column."""
    try:
        return pa.array(_values(where, column), type=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"where={dict(where)!r} does not fit the column {column!r}, which holds {kind}; pass values of this type."
        ) from error
