# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The plots of a report on a run."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jest_hf.curation.pictures import Picture
from jest_hf.curation.run_tally import PERIODS, Tally
from jest_hf.report.plots import COLOURS, MARKERS


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"examples_trained": "examples trained on", "flops": "FLOPs spent", "elapsed_seconds": "seconds"}
LOSSES = ("loss", "eval_loss")
# Of an evaluation, what is no quality.
NO_QUALITY = re.compile(r"loss$|runtime$|_per_second$|preparation_time$|_seconds$|model_preparation")
MOST_LINES = 6


def plot_curves(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """
    Plot loss, quality and learnability of a run against examples, FLOPs and seconds.

    Args:
        history (sequence of `dict`): The `log_history` of a `trainer_state.json`.

    Returns:
        The figure: a row for each kind of metric that was logged, and a column for each cost; `None` without logs.
    """
    entries = [entry for entry in history if isinstance(entry, Mapping) and "step" in entry]
    costs = {name: title for name, title in COSTS.items() if any(name in entry for entry in entries)} or {
        "step": "steps"
    }
    rows = {title: names for title, names in _metrics(entries).items() if names}
    if not rows:
        return None
    figure = _figure(3.4 * len(costs) + 1.4, 2.7 * len(rows))
    axes = figure.subplots(len(rows), len(costs), squeeze=False, sharex="col", sharey="row")
    for row, (title, names) in zip(axes, rows.items(), strict=True):
        for one, cost in zip(row, costs, strict=True):
            known = [(entry["step"], entry[cost]) for entry in entries if cost in entry]
            steps, spent = np.array(known, dtype=float).T
            for name, colour, marker in zip(names, cycle(COLOURS), cycle(MARKERS), strict=False):
                points = [(entry["step"], entry[name]) for entry in entries if name in entry]
                at, values = np.array(points, dtype=float).T
                one.plot(np.interp(at, steps, spent), values, color=colour, marker=marker, markersize=3, label=name)
            _clean(one)
        row[0].set_ylabel(title)
        row[-1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for one, title in zip(axes[-1], costs.values(), strict=True):
        one.set_xlabel(title)
    return figure


def _metrics(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    names = list(dict.fromkeys(name for entry in entries for name, value in entry.items() if _is_number(value)))
    quality = [name for name in names if name.startswith("eval_") and not NO_QUALITY.search(name)]
    recalls = [name for name in quality if name.endswith("R@1")]
    shown = ("learnability", "reference_loss", "learner_loss")
    first = next((one for one in shown if f"selected/{one}" in names), None)
    scored = [name for name in (f"selected/{first}", f"rejected/{first}") if name in names]
    return {
        "loss": [name for name in LOSSES if name in names],
        "quality": (recalls or quality)[:MOST_LINES],
        str(first).replace("_", " "): scored,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plot_scores(tally: Tally) -> Figure:
    """Plot histograms of the scores of selected and rejected rows, early and late, and their means by step."""
    figure = _figure(10.8, 3.0)
    *histograms, by_step = figure.subplots(1, 3)
    every = np.concatenate([one.scores for one in tally.samples.values()])
    every = every[np.isfinite(every)]
    low, high = np.percentile(every, [0.5, 99.5]) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, 31)
    for axes, period in zip(histograms, PERIODS, strict=True):
        for part, colour in zip(("selected", "rejected"), COLOURS, strict=False):
            scores = tally.samples[part, period].scores
            scores = scores[np.isfinite(scores)].clip(edges[0], edges[-1])
            if len(scores):
                weights = np.full(len(scores), 1 / len(scores))
                axes.hist(scores, edges.tolist(), weights=weights, color=colour, alpha=0.55, label=part)
        begin, end = tally.periods[period]
        axes.set_title(f"{period}: steps {begin:,} to {end:,}", fontsize=9)
        axes.set_xlabel("score")
        _clean(axes)
    histograms[0].set_ylabel("share of the rows")
    for (part, means), colour, marker in zip(tally.means.items(), COLOURS, MARKERS, strict=False):
        by_step.plot(_middles(tally), means, color=colour, marker=marker, markersize=3, label=part)
    by_step.set_xlabel("step")
    by_step.set_ylabel("mean score")
    by_step.legend(frameon=False, fontsize=8)
    _clean(by_step)
    return figure


def plot_sources(tally: Tally) -> Figure:
    """Plot the share of each source in what was selected, by step; the smallest sources are added up."""
    total = np.sum(list(tally.sources.values()), axis=0)
    order = sorted(tally.sources, key=lambda name: -int(tally.sources[name].sum()))
    lines = {name: tally.sources[name] for name in order[:MOST_LINES]}
    if order[MOST_LINES:]:
        others = [tally.sources[name] for name in order[MOST_LINES:]]
        lines[f"{len(others)} other sources"] = np.sum(others, axis=0)
    figure = _figure(8.0, 3.0)
    axes = figure.subplots()
    for (name, counts), colour, marker in zip(lines.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        shares = counts / np.maximum(total, 1)
        axes.plot(_middles(tally), shares, color=colour, marker=marker, markersize=3, label=_text(name))
    axes.set_xlabel("step")
    axes.set_ylabel("share of the selected rows")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _clean(axes)
    return figure


def plot_times(tally: Tally) -> Figure:
    """Plot how many rows were selected how often."""
    figure = _figure(5.4, 2.8)
    axes = figure.subplots()
    most = int(tally.times[0])
    edges = np.unique(np.linspace(1, most + 1, min(most, 40) + 1).round())
    axes.hist(tally.times, (edges - 0.5).tolist(), color=COLOURS[0])
    axes.set_yscale("log")
    axes.set_xlabel("times selected")
    axes.set_ylabel("rows")
    _clean(axes)
    return figure


def plot_gallery(pictures: Sequence[Picture]) -> Figure:
    """Draw pictures with their notes and captions, six in a row."""
    n_columns = min(6, len(pictures))
    n_rows = -(-len(pictures) // n_columns)
    figure = _figure(1.8 * n_columns, 2.4 * n_rows)
    for axes, picture in zip_longest(figure.subplots(n_rows, n_columns, squeeze=False).flat, pictures):
        axes.axis("off")
        if picture is None:
            continue
        if picture.jpeg is not None:
            axes.imshow(Image.open(io.BytesIO(picture.jpeg)))
        lines = [picture.note or picture.title, *textwrap.wrap(_text(picture.caption, 80), 26)]
        axes.set_title("\n".join(lines), fontsize=7)
    return figure


def _middles(tally: Tally) -> np.ndarray:
    middles: np.ndarray = (tally.edges[:-1] + tally.edges[1:] - 1) / 2
    return middles


def _text(name: str, most: int = 40) -> str:
    """A name for a legend: no mathematics between dollars, no underscore that would hide the line, and short."""
    name = "".join(one if one.isprintable() else " " for one in name).replace("$", r"\$")
    return " " + (name if len(name) <= most else f"{name[: most - 1]}…")


def _figure(width: float, height: float) -> Figure:
    # Imported here, so that importing this package does not import matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _clean(axes: Axes) -> None:
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


__all__ = ["plot_curves", "plot_gallery", "plot_scores", "plot_sources", "plot_times"]
