# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Load rows from the built-in scenes, from files on this disk, or from a data set on the Hub.

A path on this disk never causes a request to the network. A name that looks like a path but does not exist is an error
and not a Hub id.
"""

from __future__ import annotations

import argparse
import glob
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jest_hf.data.columns import IMAGE_COLUMNS
from jest_hf.data.scenes import SPLIT_SIZES, load_scenes
from jest_hf.data.subset import select_subset


BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tar": "webdataset",
}


def add_source_arguments(
    parser: argparse.ArgumentParser, purpose: str, *, required: bool = True, image_column: bool = True
) -> None:
    """Add the flags that name data, of the commands that read a data set once.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command.
        purpose (`str`): What the data are for, for the help text, such as `"embed"`.
        required (`bool`, *optional*, defaults to `True`): Whether the command needs `--dataset`.
        image_column (`bool`, *optional*, defaults to `True`): Whether to add `--image_column` too.
    """
    add = parser.add_argument
    add(
        "--dataset",
        required=required,
        help=f"data to {purpose}: scenes:<split>, a local file, glob or folder, or a Hub id",
    )
    add("--dataset_split", help="split of --dataset, e.g. train")
    add("--dataset_where", type=json.loads, help='keep only rows with these column values: {"split": "train"} (JSON)')
    add("--max_train_rows", type=int, help="keep only this many rows, the first ones; default: all")
    add("--subset", help="keep only the rows in this file, which `jest-hf curate --list` wrote; default: all")
    if image_column:
        add("--image_column", default="image", help="column of the images; default: image")


def source_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of [`load_source`] that the flags name, without those that were left out."""
    named = {
        "spec": options.dataset,
        "split": options.dataset_split,
        "where": options.dataset_where,
        "max_rows": options.max_train_rows,
        "subset": options.subset,
    }
    return {name: value for name, value in named.items() if value is not None}


def load_named(options: argparse.Namespace) -> datasets.Dataset:
    """Load the data that the flags of [`add_source_arguments`] name."""
    return load_source(**source_of(options))


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
) -> datasets.Dataset:
    """Load the rows of a data set.

    Args:
        spec (`str`): One of
            - `"scenes:web"` (or another split of [`load_scenes`]);
            - a file or a glob of parquet, arrow, json(l), csv or webdataset (`.tar`) files; a webdataset with images
              of several formats has a column for each, and `image_column` may name any one of them;
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

    Returns:
        `datasets.Dataset`, map-style.

    Raises:
        FileNotFoundError: If `spec` looks like a path and does not exist.
        ValueError: For a split, column or kind of file that does not exist, for a `subset` of other data, or if no
            row is left.

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
    if spec == "scenes" or spec.startswith("scenes:"):
        # Rows that max_rows would drop need not be drawn.
        loaded = load_scenes(_scenes_split(spec, split), n=None if where else max_rows)
    elif _looks_local(spec):
        loaded = _choose_split(_load_local(spec, name, data_files), split, spec)
    else:
        # With the split given, only the files of this split are downloaded.
        loaded = datasets.load_dataset(spec, name=name, data_files=data_files, revision=revision, split=split)
        loaded = _choose_split(loaded, split, spec)
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


def _load_local(spec: str, name: str | None, data_files: Any) -> datasets.Dataset | datasets.DatasetDict:
    path = Path(spec).expanduser()
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(str(path), name=name, data_files=data_files)
    files = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
    if not files:
        raise FileNotFoundError(f"{spec!r} does not exist; check the path (a relative path starts at {Path.cwd()}).")
    suffixes = sorted({Path(file).suffix for file in files})
    if len(suffixes) > 1 or suffixes[0] not in BUILDERS:
        raise ValueError(
            f"{spec!r} holds files of kind {', '.join(map(repr, suffixes))}; pass files of one kind of "
            f"{', '.join(BUILDERS)}."
        )
    if suffixes[0] == ".tar":
        return datasets.load_dataset("webdataset", data_files=files, features=_all_formats(files))
    return datasets.load_dataset(BUILDERS[suffixes[0]], data_files=files)


def _all_formats(files: Sequence[str]) -> datasets.Features | None:
    """Return the features of webdataset files with a column for every image format in them.

    `datasets` takes those of the first rows: images of other formats, in later rows, would be left out. `None` if
    there are no others.
    """
    known = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True).features
    found = set()
    for file in files:
        with tarfile.open(file) as archive:
            found |= {member.name.rpartition("/")[2].partition(".")[2] for member in archive}
    others = sorted(name for name in found - set(known) if name.lower() in IMAGE_COLUMNS)
    return datasets.Features({**known, **{name: datasets.Image() for name in others}}) if others else None


def _choose_split(loaded: datasets.Dataset | datasets.DatasetDict, split: str | None, spec: str) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        return loaded
    available = ", ".join(loaded)
    if split is None and len(loaded) > 1:
        raise ValueError(f"{spec!r} has several splits; choose one of {available} with split=.")
    if split is not None and split not in loaded:
        raise ValueError(
            f"split={split!r} is not a split of {spec!r} (there are: {available}); choose one of these, or filter by "
            "a column with where=."
        )
    return loaded[next(iter(loaded)) if split is None else split]


def _keep(dataset: datasets.Dataset, where: Mapping[str, Any], spec: str) -> datasets.Dataset:
    """Return the rows that match every condition. Reads only the columns in `where`, and no image."""
    missing = sorted(set(where) - set(dataset.column_names))
    if missing:
        raise ValueError(
            f"where names the column {missing[0]!r}, which {spec!r} does not have (there are: "
            f"{', '.join(dataset.column_names)}); name one of these."
        )
    table = dataset.select_columns(list(where)).with_format("arrow")[:]
    mask = np.ones(len(dataset), dtype=bool)
    for column, wanted in where.items():
        values = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        try:
            wanted_values = pa.array(values, type=table[column].type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"where[{column!r}]={wanted!r} does not fit the column, which holds {table[column].type}; pass values "
                "of this type."
            ) from error
        mask &= pc.is_in(table[column], value_set=wanted_values).to_numpy()
    if not mask.any():
        raise ValueError(f"where={dict(where)!r} matches no row of {spec!r}; pass fewer conditions or other values.")
    return dataset.select(np.flatnonzero(mask))
