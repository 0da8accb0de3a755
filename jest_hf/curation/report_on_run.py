# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run has selected, to be looked at: figures, pictures and tables of a run folder, and a page of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from jest_hf.curation import run_plots
from jest_hf.curation.page import Gallery, RunReport, Table
from jest_hf.curation.pictures import Picture, Pictures
from jest_hf.curation.run_tally import PERIODS, Tally, keys_of, tally_ledger
from jest_hf.data.fingerprint import first_readable
from jest_hf.data.keys import KEY_COLUMN
from jest_hf.data.row_digest import digest_rows
from jest_hf.data.rows import Rows


if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_PICTURES = 12  # of selected and of rejected rows, early and late
N_OFTEN = 24
N_HASHED = 200  # of the rows chosen most often, compared with each other
DUPLICATE_DISTANCE = 10  # of 192 bits
N_CLASSES = 40
OTHER_DATA = (
    "name the data, and the rows of it, that the run was trained on (--dataset, --dataset_split, --dataset_where, "
    "--max_train_rows, --image_column), or leave --dataset out for a report without pictures."
)


def run_report(
    run: str | os.PathLike[str],
    dataset: Any = None,
    *,
    image_column: str = "image",
    caption_column: str | None = None,
    label_column: str | None = None,
) -> RunReport:
    """
    Report on a run that was trained with `record_selection=True`.

    Args:
        run (`str` or `os.PathLike`): The `output_dir` of the run.
        dataset (*optional*): The map-style data that the run was trained on, for pictures, captions and classes.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images.
        caption_column (`str`, *optional*): Column of the captions. Default: the first of text, caption and captions.
        label_column (`str`, *optional*): Column of the labels, for a table of classes. Default: `label`, if there is
            one.

    Returns:
        [`RunReport`]: `figures` are matplotlib figures by title, and `html()` is the page.

    Raises:
        FileNotFoundError: if there is no such folder, or no ledger in it.
        ValueError: if the ledger or the state of the run cannot be read, or for data that are not the run's.

    Example:

    ```python
    from jest_hf.curation import run_report

    report = run_report("out")
    report.figures["Scores"].savefig("scores.png")
    ```
    """
    folder = Path(run)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; pass the output_dir of a run.")
    ledger = folder / "selections.parquet"
    if not ledger.exists():
        raise FileNotFoundError(f"{folder} has no selections.parquet; train with record_selection=True.")
    state = _state_of(folder)
    tally = tally_ledger(ledger)
    statistics = _statistics_of(state)
    report = RunReport(folder, _facts(statistics, tally), _figures(state, tally), tables=_tables(statistics))
    if state is None:
        report.notes.append(
            "No trainer_state.json, in the folder or in a checkpoint: the report has no curves of loss and quality."
        )
    if not tally.has_scores:
        report.notes.append("The ledger has no scores: the run selected nothing, or an earlier version wrote it.")
    n_rows = statistics.get("args", {}).get("n_examples")
    keys = keys_of(ledger, _shown_ids(tally)) if tally.has_keys else {}
    if dataset is None:
        report.notes.append("No pictures and captions: name the run's data with --dataset to have them.")
        find: Mapping[int, int] | None = None
    else:
        _check_column(dataset, caption_column)
        find = _check_data(dataset, image_column, tally, statistics, keys)
        n_rows = len(dataset)
    pictures = Pictures(dataset, image_column, caption_column, keys, find)
    _add_galleries(report, tally, pictures, n_rows)
    if dataset is not None:
        _add_near_duplicates(report, tally, pictures)
        _add_classes(report, tally, dataset, label_column)
    return report


def _state_of(folder: Path) -> dict[str, Any] | None:
    """The newest state of the run: that of the folder, or of its last checkpoint."""
    found = []
    for path in [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]:
        if path.is_file():
            try:
                state = json.loads(path.read_text())
                found.append((int(state["global_step"]), state))
                state["log_history"][:1]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}); move it elsewhere to report on the rest of the run."
                ) from error
    return max(found, key=lambda one: one[0])[1] if found else None


def _statistics_of(state: Mapping[str, Any] | None) -> dict[str, Any]:
    saved = ((state or {}).get("stateful_callbacks") or {}).get("RunStatistics")
    return saved if isinstance(saved, dict) else {}


def _facts(statistics: Mapping[str, Any], tally: Tally) -> list[tuple[str, str]]:
    facts = [
        ("steps", f"{tally.first:,} to {tally.last:,}"),
        ("selections", f"{tally.n_selected:,}, of {len(tally.ids):,} different rows"),
        ("selected most often", f"{int(tally.times[0]):,} times"),
    ]
    if (n_rows := statistics.get("args", {}).get("n_examples")) is not None:
        facts.append(("rows of the data", f"{n_rows:,}, of which {n_rows - len(tally.ids):,} were never selected"))
    return facts


def _tables(statistics: Mapping[str, Any]) -> list[Table]:
    """What the state of a run knows: rows by source, and the settings of the selection."""
    tables = []
    sources = (statistics.get("attributes") or {}).get("sources") or {}
    if sources:
        cells = [
            (name, f"{seen:,}", f"{selected:,}", f"{selected / seen:.1%}" if seen else "")
            for name, (selected, seen) in sources.items()
        ]
        tables.append(Table("By source", ("source", "rows seen", "selections", "selected of those seen"), cells))
    settings = (statistics.get("args") or {}).get("settings") or {}
    known = [(str(name), str(value)) for name, value in settings.items() if isinstance(value, str | int | float)]
    return [*tables, *([Table("Settings of the selection", ("setting", "value"), known)] if known else [])]


def _figures(state: Mapping[str, Any] | None, tally: Tally) -> dict[str, Figure]:
    figures = {}
    if state is not None and (curves := run_plots.plot_curves(state["log_history"])) is not None:
        figures["Curves"] = curves
    if tally.has_scores:
        figures["Scores"] = run_plots.plot_scores(tally)
    if tally.sources:
        figures["Sources"] = run_plots.plot_sources(tally)
    figures["How often rows were selected"] = run_plots.plot_times(tally)
    return figures


def _check_data(
    dataset: Any, image_column: str, tally: Tally, statistics: Mapping[str, Any], keys: Mapping[int, str]
) -> dict[int, int] | None:
    """Raise a `ValueError` for data that are not the run's; of a stream return the rows of the ids, by their keys."""
    n_rows = len(dataset)
    known = statistics.get("args", {})
    expected = known.get("n_examples")
    if known and expected is None:
        if not keys or not isinstance(dataset, datasets.Dataset) or KEY_COLUMN not in dataset.column_names:
            raise ValueError(
                f"the run was trained on a stream, whose rows --dataset has only if both have keys ({KEY_COLUMN}); "
                "leave --dataset out."
            )
        places = {key: place for place, key in enumerate(dataset[KEY_COLUMN])}
        found = {one: places[key] for one, key in keys.items() if key in places}
        if not found:
            raise ValueError(f"--dataset has none of the rows of the run, by their {KEY_COLUMN}; {OTHER_DATA}")
        return found
    if expected not in (None, n_rows):
        raise ValueError(f"--dataset has {n_rows:,} rows, and the run was trained on {expected:,}; {OTHER_DATA}")
    if int(tally.ids.max()) >= n_rows:
        raise ValueError(
            f"--dataset has {n_rows:,} rows, and the run has selected row {tally.ids.max():,}; {OTHER_DATA}"
        )
    was = ((known.get("settings") or {}).get("train_dataset") or {}).get("rows")
    now = digest_rows(dataset, image_column) if was else None
    if was and now and was != now:
        raise ValueError(
            f"--dataset has as many rows as the data of the run ({n_rows:,}), and others (digest {now}, of the run "
            f"{was}); {OTHER_DATA}"
        )
    return None


def _check_column(dataset: Any, caption_column: str | None) -> None:
    if caption_column is not None and len(dataset) and caption_column not in (row := first_readable(Rows(dataset))):
        raise ValueError(
            f"--caption_column {caption_column} is not a column of --dataset (there are: "
            f"{', '.join(map(str, row))}); name one of these."
        )


def spread(ids: np.ndarray, scores: np.ndarray, size: int) -> list[tuple[int, float]]:
    """A sample of different rows by a fixed seed, by falling score."""
    order = np.random.default_rng(0).permutation(len(ids))
    _, first = np.unique(ids[order], return_index=True)
    chosen = order[np.sort(first)[:size]]
    pairs = zip(ids[chosen].tolist(), scores[chosen].tolist(), strict=True)
    return sorted(pairs, key=lambda pair: -pair[1] if np.isfinite(pair[1]) else np.inf)


def _samples(tally: Tally) -> dict[tuple[str, str], list[tuple[int, float]]]:
    return {name: spread(one.ids, one.scores, N_PICTURES) for name, one in tally.samples.items()}


def _shown_ids(tally: Tally) -> np.ndarray:
    shown = [one for sample in _samples(tally).values() for one, _ in sample]
    return np.concatenate([np.array(shown, np.int64), tally.ids[:N_HASHED]])


def _add_galleries(report: RunReport, tally: Tally, pictures: Pictures, n_rows: int | None) -> None:
    samples = _samples(tally)
    for period in PERIODS:
        begin, end = tally.periods[period]
        for part in ("selected", "rejected"):
            if sample := samples[part, period]:
                shown = [pictures.of(one, f"score {score:.3g}" if np.isfinite(score) else "") for one, score in sample]
                about = f"A uniform sample of steps {begin:,} to {end:,}, by falling score."
                report.galleries.append(Gallery(f"{part.capitalize()}, {period}", about, shown))
    pairs = list(zip(tally.ids[:N_OFTEN].tolist(), tally.times[:N_OFTEN].tolist(), strict=True))
    often = [pictures.of(one, f"{times} times") for one, times in pairs]
    report.galleries.append(Gallery("Selected most often", "By the number of steps that trained on a row.", often))
    if n_rows is not None and pictures.dataset is not None and pictures.find is None:
        never = np.setdiff1d(np.arange(n_rows), tally.ids)
        chosen = np.sort(np.random.default_rng(0).permutation(never)[:N_OFTEN])
        about = f"A uniform sample of the {len(never):,} rows that no step trained on."
        report.galleries.append(Gallery("Never selected", about, [pictures.of(int(one), "") for one in chosen]))


def _add_near_duplicates(report: RunReport, tally: Tally, pictures: Pictures) -> None:
    """Pairs of near duplicates among the rows that were selected most often."""
    ids = tally.ids[:N_HASHED].tolist()
    hashes = {one: found for one in ids if (found := pictures.hash(one)) is not None}
    known = list(hashes)
    if not known:
        return
    bits = np.stack([hashes[one] for one in known])
    shown: list[Picture] = []
    n_pairs = 0
    for place, one in enumerate(known[1:], start=1):
        differing = np.bitwise_count(bits[:place] ^ bits[place]).sum(axis=1, dtype=np.int64)
        nearest = int(differing.argmin())
        if differing[nearest] <= DUPLICATE_DISTANCE:
            n_pairs += 1
            if len(shown) < N_OFTEN:
                shown += [
                    pictures.of(known[nearest], "of a pair"),
                    pictures.of(one, f"{differing[nearest]} bits apart"),
                ]
    about = (
        f"Of the {len(known):,} rows selected most often, {n_pairs:,} are near duplicates of one selected more often "
        f"(perceptual hashes that differ in at most {DUPLICATE_DISTANCE} of 192 bits)."
    )
    report.galleries.append(Gallery("Near duplicates among them", about, shown))


def _add_classes(report: RunReport, tally: Tally, dataset: Any, label_column: str | None) -> None:
    """A table of the classes, for labelled data: their share of the rows, and of what was selected."""
    if not isinstance(dataset, datasets.Dataset):
        return
    column = label_column or ("label" if "label" in dataset.column_names else None)
    if column is None or tally.ids.max() >= len(dataset):
        return
    if column not in dataset.column_names:
        raise ValueError(
            f"--label_column {column} is not a column of --dataset (there are: {', '.join(dataset.column_names)}); "
            "name one of these."
        )
    labels = np.array([str(one) for one in dataset.with_format(None)[column]])
    names, of_row = np.unique(labels, return_inverse=True)
    rows = np.bincount(of_row, minlength=len(names))
    selected = np.bincount(of_row[tally.ids], tally.times, minlength=len(names))
    feature = dataset.features[column]
    titles = [feature.int2str(int(name)) for name in names] if isinstance(feature, datasets.ClassLabel) else names
    share, ratio = rows / rows.sum(), (selected / selected.sum()) / (rows / rows.sum())
    order = np.argsort(-ratio, kind="stable")
    half = N_CLASSES // 2
    shown = order if len(order) <= N_CLASSES else np.concatenate([order[:half], order[-half:]])
    title = (
        "By class" if len(order) <= N_CLASSES else f"By class: the {half} most and least selected of {len(order):,}"
    )
    cells = [
        (titles[one], f"{rows[one]:,}", f"{share[one]:.2%}", f"{int(selected[one]):,}", f"{ratio[one]:.2f}")
        for one in shown
    ]
    heads = ("class", "rows", "share of the rows", "selections", "selected, relative to its share")
    report.tables.insert(0, Table(title, heads, cells))


__all__ = ["RunReport", "run_report"]
