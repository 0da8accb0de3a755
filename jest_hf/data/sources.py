# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""One way to name rows: the built-in scenes, something on this disk, or a data set on the Hub.

What is on this disk is never asked of the network; what is not found there and looks like a path is an error, not a
Hub id.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jest_hf.data.scenes import SPLIT_SIZES, load_scenes


BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tar": "webdataset",
}


def load_source(
    spec: str,
    *,
    split: str | None = None,
    name: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    revision: str | None = None,
    max_rows: int | None = None,
    where: Mapping[str, Any] | None = None,
) -> datasets.Dataset:
    """
    Loads rows from wherever `spec` points to.

    Args:
        spec (`str`): One of
            - `"scenes:web"` (or another split of [`load_scenes`]);
            - a file or a glob of parquet, arrow, json(l), csv or webdataset (`.tar`) files;
            - a folder: one that `save_to_disk` wrote, one of such files, or one of images (with `metadata.csv`);
            - a data set's id on the Hub, or a builder's name of `datasets` with `data_files`.
        split (`str`, *optional*): Which split; needed where there is more than one.
        name (`str`, *optional*): Configuration of the data set (its "subset" on the Hub).
        data_files (`str`, sequence or mapping of them, *optional*): As in `datasets.load_dataset`.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        max_rows (`int`, *optional*): Keep at most this many rows, the first ones (after `where`).
        where (`Mapping[str, Any]`, *optional*): Keep the rows whose column equals the value, or is one of the values:
            `{"split": "train", "source": ["noto", "fxemoji"]}`.

    Returns:
        `datasets.Dataset`, map-style.

    Raises:
        FileNotFoundError: if `spec` looks like a path and nothing is there.
        ValueError: for a split, column or kind of file that does not exist, or when no row is left.
    """
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}: give 1 or more, or leave it out to keep every row.")
    if spec == "scenes" or spec.startswith("scenes:"):
        # Scenes are drawn on demand: no need to draw rows that max_rows would drop.
        loaded = load_scenes(_scenes_split(spec, split), n=None if where else max_rows)
    elif _looks_local(spec):
        loaded = _choose_split(_load_local(spec, name, data_files), split, spec)
    else:
        # The split goes along, so that only its files are fetched.
        loaded = datasets.load_dataset(spec, name=name, data_files=data_files, revision=revision, split=split)
        loaded = _choose_split(loaded, split, spec)
    if where:
        loaded = _keep(loaded, where, spec)
    return loaded if max_rows is None else loaded.select(range(min(max_rows, len(loaded))))


def _scenes_split(spec: str, split: str | None) -> str:
    named = spec.removeprefix("scenes").removeprefix(":")
    if named and split and named != split:
        raise ValueError(f"{spec!r} names one split and split={split!r} another: give one of them.")
    if not (named or split):
        raise ValueError(f"'scenes' needs a split: 'scenes:' and one of {', '.join(SPLIT_SIZES)}.")
    return named or str(split)


def _looks_local(spec: str) -> bool:
    """Whether `spec` is there, or could not be a Hub id (`name` or `owner/name`) anyway."""
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
        raise FileNotFoundError(f"Nothing is at {spec!r}: check the path (relative ones start at {Path.cwd()}).")
    suffixes = sorted({Path(file).suffix for file in files})
    if len(suffixes) > 1 or suffixes[0] not in BUILDERS:
        raise ValueError(
            f"{spec!r} holds files of kind {', '.join(map(repr, suffixes))}: give one kind of {', '.join(BUILDERS)}."
        )
    return datasets.load_dataset(BUILDERS[suffixes[0]], data_files=files)


def _choose_split(loaded: datasets.Dataset | datasets.DatasetDict, split: str | None, spec: str) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        return loaded
    available = ", ".join(loaded)
    if split is None and len(loaded) > 1:
        raise ValueError(f"{spec!r} has several splits: choose one of {available} with split=.")
    if split is not None and split not in loaded:
        raise ValueError(
            f"{spec!r} has no split {split!r}, only {available}: choose one, or filter by a column with where=."
        )
    return loaded[next(iter(loaded)) if split is None else split]


def _keep(dataset: datasets.Dataset, where: Mapping[str, Any], spec: str) -> datasets.Dataset:
    """The rows that match every condition. Reads the named columns alone, so no image is touched."""
    missing = sorted(set(where) - set(dataset.column_names))
    if missing:
        raise ValueError(
            f"where names the column {missing[0]!r}, which {spec!r} does not have: "
            f"its columns are {', '.join(dataset.column_names)}."
        )
    table = dataset.select_columns(list(where)).with_format("arrow")[:]
    mask = np.ones(len(dataset), dtype=bool)
    for column, wanted in where.items():
        values = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        try:
            wanted_values = pa.array(values, type=table[column].type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"where[{column!r}] is {wanted!r}, but the column holds {table[column].type}.") from error
        mask &= pc.is_in(table[column], value_set=wanted_values).to_numpy()
    if not mask.any():
        raise ValueError(f"No row of {spec!r} matches where={dict(where)!r}: loosen it.")
    return dataset.select(np.flatnonzero(mask))
