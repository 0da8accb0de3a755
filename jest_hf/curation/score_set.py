# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The scores of a data set on disk: a manifest, and Parquet files with a row for each row of the data.

    scores.json               the models, the data, how the losses were made, and the sha256 of every shard
    scores-00000.parquet      row int64, example_id int64, maybe __key__ string, and float32 losses

[`~jest_hf.curation.score_dataset`] writes such a folder, and [`open_scores`] opens it. Shard k begins with row
`k * shard_rows` of the data. A row that could not be read has NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jest_hf.data.files import read_json
from jest_hf.data.rows import Rows
from jest_hf.reference.fingerprint import describe_rows, difference
from jest_hf.reference.losses import hash_column
from jest_hf.reference.verified import sha256_of


MANIFEST = "scores.json"
UNFINISHED = "unfinished-scores.json"  # the manifest while its shards are being written
FORMAT = 1
KEY = "__key__"  # of a webdataset
LOSSES = ("learner_loss", "reference_loss")
LEARNABILITY = "learnability"


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"scores-{number:05d}.parquet"


def is_whole(path: Path, n_rows: int, columns: Sequence[str]) -> bool:
    """Return whether a file is a shard with `n_rows` rows and these columns; only its footer is read."""
    try:
        about = pq.read_metadata(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return False
    return bool(about.num_rows == n_rows and about.schema.names == list(columns))


@dataclass(frozen=True)
class ScoreSet:
    """The scores of a data set, on disk.

    Args:
        folder (`Path`): Folder of the scores.
        manifest (`dict`): Contents of `scores.json`.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def n_rows(self) -> int:
        """Rows of the data set (N)."""
        return int(self.manifest["data"]["n_rows"])

    @property
    def n_broken(self) -> int:
        """Rows that could not be read. Their scores are NaN."""
        return int(self.manifest["broken"])

    @property
    def columns(self) -> list[str]:
        """Names of the scores: some of `learner_loss`, `reference_loss` and `learnability`."""
        return [name for name in self.manifest["columns"] if name in (*LOSSES, LEARNABILITY)]

    @property
    def stability(self) -> dict[str, float]:
        """Spearman's correlation of two halves of the draws, by score; empty with one draw, or without pairs."""
        return dict(self.manifest["stability"])

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns of all N rows, in the order of the data.

        Args:
            columns (sequence of `str`, *optional*): Names of columns. Default: all.

        Raises:
            ValueError: for a shard that was damaged since it was written.
        """
        parts = []
        for about in self.manifest["shards"]:
            path = self.folder / about["name"]
            if sha256_of(path) != about["sha256"]:
                raise ValueError(
                    f"{path} is damaged: its sha256 is not that in {MANIFEST}; delete {MANIFEST} and the "
                    "files scores-*.parquet, and run `jest-hf score` again: the embeddings are kept."
                )
            parts.append(pq.read_table(path, columns=None if columns is None else list(columns)))
        return pa.concat_tables(parts)

    def scores(self) -> dict[str, np.ndarray]:
        """Return the scores by name, float32 `[N]` each."""
        table = self.read(self.columns)
        return {name: table[name].to_numpy() for name in self.columns}

    def check(self, rows: Rows) -> None:
        """Check that the scores are those of these rows.

        Args:
            rows ([`~jest_hf.data.rows.Rows`]): The data.

        Raises:
            ValueError: for other data; the message names the first difference.
        """
        data = self.manifest["data"]
        found = difference({"data": data}, {"data": describe_like(data, rows)})
        if found is not None:
            raise ValueError(
                f"the scores in {self.folder} are not of this data set: {found}; name the data set that was scored "
                "with --dataset, --dataset_split and --dataset_where, or score this one with `jest-hf score`."
            )


def describe_like(data: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """Describe rows by the fields of a manifest's section `data`, as far as the rows have its columns."""
    if len(rows) != data["n_rows"]:
        return {"n_rows": len(rows)}
    if "image_column" not in data:
        return describe_columns(rows, list(data.get("column", {})))
    first = rows[0]
    lacking = [name for name in ("image_column", "caption_column") if data[name] not in first]
    if lacking:
        return {lacking[0]: None}
    return describe_rows(rows, data["image_column"], data["caption_column"])


def describe_columns(rows: Rows, columns: Sequence[str]) -> dict[str, Any]:
    """Describe labelled rows: their number and, if columns can be read without images, a hash of each column."""
    dataset, known = rows.dataset, {}
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        names = dataset.column_names
        known = {name: hash_column(dataset, name) if name in names else None for name in columns}
    return {"n_rows": len(rows), **({"column": known} if known else {})}


def open_scores(folder: str | Path) -> ScoreSet:
    """Open the scores in a folder.

    Args:
        folder (`str` or `Path`): Folder that [`~jest_hf.curation.score_dataset`] wrote.

    Raises:
        FileNotFoundError: if the folder has no scores, or unfinished ones.
        ValueError: if the format is unknown, or a shard is missing or of the wrong size.
    """
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        what = "unfinished scores" if (folder / UNFINISHED).exists() else "no scores"
        raise FileNotFoundError(f"{folder} has {what}; run `jest-hf score --output_dir {folder}` first.")
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"the scores in {folder} have format {manifest.get('format')!r}, and this version of jest_hf reads format "
            f"{FORMAT}; score the data set again, in another folder."
        )
    for about in manifest["shards"]:
        path = folder / about["name"]
        size = path.stat().st_size if path.exists() else None
        if size != about["bytes"]:
            raise ValueError(
                f"{path} {'is missing' if size is None else f'has {size} bytes'}, and {MANIFEST} lists it with "
                f"{about['bytes']} bytes; delete {MANIFEST} and the files scores-*.parquet, and run `jest-hf score` "
                "again: the embeddings are kept."
            )
    return ScoreSet(folder, manifest)


__all__ = ["ScoreSet", "open_scores"]
