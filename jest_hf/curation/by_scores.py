# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Make a data set of the rows with the best scores, or of the rows that a run selected.

The rows are copied as they are, with their scores as further columns, into a folder that `datasets.load_dataset` reads
and that can be pushed to the Hub. Or no row is copied: a list of the kept rows is written, for `--subset`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub import DatasetCard

from jest_hf.curation.choose import (
    LEDGER,
    TIMES_SELECTED,
    Rule,
    default_criterion,
    read_times_selected,
    repeats,
    scores_by,
)
from jest_hf.curation.score_set import KEY, MANIFEST, UNFINISHED, ScoreSet, open_scores
from jest_hf.curation.writers import WRITERS, column_names, write_parquet, write_uids, write_webdataset
from jest_hf.data import load_source
from jest_hf.data.captions import CAPTION_COLUMNS
from jest_hf.data.rows import Rows
from jest_hf.data.subset import write_subset
from jest_hf.hub import CuratedSummary, curated_card, write_card
from jest_hf.hub.data_push import push_data
from jest_hf.reference.fingerprint import own_keys


UID = "uid"  # of DataComp
TRAIN_FILES = "data/train-*"


@dataclass(frozen=True)
class Curated:
    """A curated data set that was written.

    Args:
        kept (`np.ndarray`): Numbers of the kept rows in the data set, int64, ascending.
        n_rows (`int`): Rows of the data set.
        n_readable (`int`): Rows that have a score.
        files (`tuple[Path, ...]`): What was written: the folder, the list of rows, the list of uids.
        repeats (`str`, *optional*): How often a row is seen at the planned number of steps.
        commit (`str`, *optional*): The commit on the Hub.
    """

    kept: np.ndarray
    n_rows: int
    n_readable: int
    files: tuple[Path, ...]
    repeats: str | None = None
    commit: str | None = None


def curate_dataset(
    scores: str | Path,
    output_dir: str | Path | None = None,
    *,
    dataset: datasets.Dataset | None = None,
    keep: float | None = None,
    above: float | None = None,
    per: str | None = None,
    criterion: str | None = None,
    run: str | Path | None = None,
    by_key: bool = False,
    format: str = "parquet",
    list_path: str | Path | None = None,
    push_to_hub: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    source: Mapping[str, Any] | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> Curated:
    """Make a data set of the rows with the best scores, or of the rows that a run selected.

    Args:
        scores (`str` or `Path`): Folder of [`score_dataset`], or the `output_dir` of a run with
            `record_selection=True`: the score of a row is then the number of times that the run selected it.
        output_dir (`str` or `Path`, *optional*): Folder to write the rows to. It must not exist, or be empty. Default:
            none without `push_to_hub`, and otherwise a folder with the repository's name.
        dataset (`datasets.Dataset`, *optional*): The data that were scored, or that the run trained on. Default: the
            data set that `source` or, without it, `scores` names.
        keep (`float`, *optional*): Share of the readable rows to keep, in (0, 1].
        above (`float`, *optional*): Keep the rows whose score is above this threshold. Default of a run: 0, all rows
            that it selected.
        per (`str`, *optional*): Column; with `keep`, the share is kept of each of its values, e.g. of each source.
        criterion (`str`, *optional*): How scores rank rows, one of `CRITERIA`. Default: learnability, or
            easy_reference for scores without a learner, or hard_learner for scores without a reference.
        run (`str` or `Path`, *optional*): `output_dir` of a run on these data, for the column `times_selected`.
        by_key (`bool`, *optional*, defaults to `False`): Whether the run trained on a stream of these data, and knows
            a row by the data's own column `example_id`. Otherwise it knows a row by its number.
        format (`str`, *optional*, defaults to `"parquet"`): `"parquet"` or `"webdataset"`.
        list_path (`str` or `Path`, *optional*): Parquet file for the list of kept rows, see
            [`~jest_hf.data.select_subset`]. If the rows have a `uid`, DataComp's list of uids is written beside it, as
            `.npy`. Without `output_dir` and `push_to_hub`, no row is copied.
        push_to_hub (`str`, *optional*): Data-set repository, `owner/name`, to push the folder to.
        steps, batch_size (`int`, *optional*): Steps of the planned run, and rows that it trains on in a step over all
            devices: the card tells how often each row will be seen.
        source (`Mapping`, *optional*): Arguments of [`~jest_hf.data.load_source`] that load `dataset`.
        license (`str`, *optional*): Licence of the data, by the Hub's name, for the card.
        private (`bool`, *optional*): Whether a new repository is private. Default: the owner's setting.
        token (`str`, *optional*): Token that may write. Default: the token of `hf auth login`.

    Returns:
        [`Curated`]: the rows that were kept, and the files.

    Raises:
        ValueError: for options that do not go together, scores or a run of other data, and a damaged file.
        FileNotFoundError: if `scores` has neither scores nor a ledger.
        TypeError: if `dataset` is no `datasets.Dataset`.
        FileExistsError: if `output_dir` or `list_path` exists.
        OSError: if the push failed after three tries. The folder is kept.
    """
    rule = Rule(keep, above, per)
    if format not in WRITERS:
        raise ValueError(f"format={format!r} is not known; choose one of {', '.join(WRITERS)}.")
    if push_to_hub is not None and output_dir is None:
        output_dir = push_to_hub.rpartition("/")[2]
    folder = None if output_dir is None else Path(output_dir).expanduser()
    listed = None if list_path is None else Path(list_path).expanduser()
    if folder is None and listed is None:
        raise ValueError("there is nothing to write; pass output_dir, push_to_hub or list_path.")
    _check_new(folder, listed)
    repeats(1, 1, steps, batch_size)  # raises before anything is read

    opened, run = _open(Path(scores), run)
    if opened is not None and keep is None and above is None:
        raise ValueError("scores need a rule; pass keep, e.g. keep=0.2, or above, e.g. above=0.")
    origin = dict(source or (opened.manifest["source"] if opened is not None and dataset is None else {}))
    if push_to_hub is not None and push_to_hub == origin.get("spec"):
        raise ValueError(f"push_to_hub={push_to_hub!r} is the data set that is curated; name another repository.")
    if dataset is None and origin:
        dataset = load_source(**origin)
    if dataset is None and (folder is not None or opened is None or per is not None):
        raise ValueError(f"{scores} does not name its data set; pass it as dataset (--dataset).")
    if not isinstance(dataset, datasets.Dataset | None):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, and rows are copied from a datasets.Dataset; load it with "
            "load_source, or make one with datasets.Dataset.from_list or from_generator."
        )
    rows = None if dataset is None else Rows(dataset)
    if opened is not None and rows is not None:
        opened.check(rows)

    columns, names = _scores_of(opened, rows, run, by_key)
    if opened is None:
        criterion, ranked = TIMES_SELECTED, columns[TIMES_SELECTED].astype(np.float64)
    else:
        criterion = criterion or default_criterion(columns)
        ranked = scores_by(criterion, columns)
    kept = rule.choose(ranked, None if per is None else _column(dataset, per))
    n_rows, n_readable = len(ranked), int((~np.isnan(ranked)).sum())
    said = repeats(len(kept), n_rows, steps, batch_size)
    added = {name: values[kept] for name, values in columns.items()}

    files: list[Path] = []
    if listed is not None:
        files += _write_list(listed, kept, {**names, **columns}, dataset, n_rows)
    commit = None
    if folder is not None and dataset is not None:
        summary = CuratedSummary(
            name=push_to_hub or str(folder),
            source=origin.get("spec") or "a data set in memory",
            filters=[("readable", {}, n_readable), (criterion, _parameters(rule, opened), len(kept))],
            rows=n_rows,
            license=license,
            columns=[*dataset.column_names, *column_names(dataset, {"pool_row": kept, **added}).values()],
            scoring=_about(opened, run),
            repeats=said,
        )
        _write_folder(folder, dataset, kept, added, format, opened, curated_card(summary))
        files.insert(0, folder)
        if push_to_hub is not None:
            commit = push_data(
                *(folder, push_to_hub, lambda _: curated_card(summary)),
                name="curated data set",
                files=[TRAIN_FILES],
                replaced=[TRAIN_FILES],
                commit_message="Upload curated data set",
                private=private,
                token=token,
            )
    return Curated(kept, n_rows, n_readable, tuple(files), said, commit)


def _check_new(folder: Path | None, listed: Path | None) -> None:
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"output_dir={str(folder)!r} exists; name another folder, or delete it.")
    if listed is None:
        return
    if listed.suffix != ".parquet":
        raise ValueError(f"list_path={str(listed)!r} is a Parquet file; give it a name that ends in .parquet.")
    for path in (listed, listed.with_suffix(".npy")):
        if path.exists():
            raise FileExistsError(f"{path} exists; name another list (--list), or delete the file.")


def _open(folder: Path, run: str | Path | None) -> tuple[ScoreSet | None, Path | None]:
    """Return the scores in a folder, and the run whose ledger counts; the folder itself may be that of a run."""
    if (folder / MANIFEST).exists() or (folder / UNFINISHED).exists():
        return open_scores(folder), None if run is None else Path(run)
    if not (folder / LEDGER).exists():
        raise FileNotFoundError(
            f"{folder} has neither scores ({MANIFEST}) nor a ledger ({LEDGER}); make scores with `jest-hf score "
            f"--output_dir {folder}`, or name the output_dir of a run with record_selection=True."
        )
    if run is not None:
        raise ValueError(f"run={str(run)!r}: {folder} is a run already; leave run out.")
    return None, folder


def _scores_of(
    opened: ScoreSet | None, rows: Rows | None, run: Path | None, by_key: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the columns to add, and the columns that name rows, `[N]` each."""
    columns: dict[str, np.ndarray] = {}
    if opened is None:
        assert rows is not None  # checked
        keys = own_keys(rows)
        names: dict[str, Any] = {"example_id": np.arange(len(rows)) if keys is None else keys}
    else:
        table = opened.read()
        columns |= {name: table[name].to_numpy() for name in opened.columns}
        names = {name: table[name].to_numpy() for name in ("example_id", KEY) if name in table.column_names}
    if run is not None:
        # A run on map-style data knows a row by its number, a run on a stream by its own example_id.
        ids = names["example_id"] if by_key else np.arange(len(names["example_id"]))
        columns[TIMES_SELECTED] = read_times_selected(run, ids)
    return columns, names


def _column(dataset: datasets.Dataset | None, name: str) -> Any:
    if dataset is None or name not in dataset.column_names:
        there = "" if dataset is None else f" (there are: {', '.join(dataset.column_names)})"
        raise ValueError(f"per={name!r} is not a column of the data set{there}; name one of these.")
    return dataset.select_columns([name]).with_format(None)[:][name]


def _parameters(rule: Rule, opened: ScoreSet | None) -> dict[str, Any]:
    given = {"keep": rule.keep, "above": rule.above, "per": rule.per}
    found = {name: value for name, value in given.items() if value is not None}
    return found or {"above": 0}


def _about(opened: ScoreSet | None, run: Path | None) -> list[tuple[str, Any]]:
    """Return what the card tells about the scores: names and values."""
    about: list[tuple[str, Any]] = []
    if opened is not None:
        manifest = opened.manifest
        for name in ("learner", "reference"):
            if (model := manifest.get(name)) is not None:
                known = f"{manifest['names'][name]}, sha256 of its weights {model.get('weights')}"
                about.append((name, f"{model['repo']}@{model['commit']}" if "commit" in model else known))
        scoring = manifest["scoring"]
        about += [(key.replace("_", " "), scoring[key]) for key in ("loss", "batch_size", "draws") if key in scoring]
        about += [(f"rank correlation of two halves of the draws, {key.replace('_', ' ')}", f"{value:.3f}")
                  for key, value in opened.stability.items()]  # fmt: skip
    if run is not None:
        about.append(("run whose selections are counted", run.resolve().name))
    return about


def _write_list(
    path: Path, kept: np.ndarray, columns: Mapping[str, np.ndarray], dataset: datasets.Dataset | None, n_rows: int
) -> list[Path]:
    """Write the list of kept rows and, for rows with a `uid`, DataComp's list."""
    chosen = {"row": kept, **{name: values[kept] for name, values in columns.items()}}
    uids = path.with_suffix(".npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    if dataset is not None and UID in dataset.column_names:
        chosen[UID] = dataset.select(kept).select_columns([UID]).with_format(None)[:][UID]
        with _in_one_move(uids) as temporary:
            write_uids(temporary.with_suffix(".npy"), list(chosen[UID]))
            temporary.with_suffix(".npy").rename(temporary)
        written.append(uids)
    with _in_one_move(path) as temporary:
        write_subset(temporary, chosen, n_rows)
    return [path, *written]


def _write_folder(
    folder: Path,
    dataset: datasets.Dataset,
    kept: np.ndarray,
    scores: Mapping[str, np.ndarray],
    format: str,
    opened: ScoreSet | None,
    card: DatasetCard,
) -> None:
    added = {"pool_row": kept, **scores}
    names = column_names(dataset, added)
    added = {names[name]: values for name, values in added.items()}
    data = {} if opened is None else opened.manifest["data"]
    texts = (name for name in CAPTION_COLUMNS if name in dataset.column_names)
    with _in_one_move(folder) as temporary:
        temporary.mkdir(parents=True)
        if format == "parquet":
            write_parquet(temporary, dataset, kept, added)
        else:
            text_column = data.get("caption_column") or next(texts, None)
            write_webdataset(temporary, dataset, kept, added, data.get("image_column"), text_column)
        write_card(card, temporary / "README.md")


@contextmanager
def _in_one_move(path: Path) -> Iterator[Path]:
    """Give a name to write under; what was written is moved to `path` if all went well, and otherwise removed."""
    temporary = path.with_name(f".{path.name}.unfinished")
    remove: Callable[[Path], Any] = lambda one: shutil.rmtree(one) if one.is_dir() else one.unlink()  # noqa: E731
    if temporary.exists():  # of a call that was killed
        remove(temporary)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        if temporary.exists():
            remove(temporary)
        raise


__all__ = ["Curated", "curate_dataset"]
