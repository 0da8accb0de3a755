# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Plots: quality of runs against their cost, and a metric of selected and rejected examples by step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple


if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The palette of Okabe and Ito suits every kind of colour blindness; markers distinguish the lines without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


class QualityPoint(NamedTuple):
    """One evaluation of a run.

    Args:
        trained (`int`): Examples trained on so far.
        seen (`int`): Examples loaded so far, trained on or not.
        flops (`float`): FLOPs spent so far.
        quality (`float`): The metric; higher is better.
        seconds (`float`, *optional*): Seconds spent so far.
    """

    trained: int
    seen: int
    flops: float
    quality: float
    seconds: float | None = None


def first_reaching(points: Iterable[Sequence[Any]], quality: float) -> QualityPoint | None:
    """Find the first evaluation of a run with at least a given quality, without interpolation.

    Args:
        points (iterable of [`QualityPoint`] or of tuples like it):
            Evaluations of the run, in order.
        quality (`float`):
            The quality to reach.

    Returns:
        [`QualityPoint`], or `None` if the run never reached the quality.

    Example:

    ```python
    >>> from jest_hf.report import first_reaching
    >>> first_reaching([(10, 50, 1e9, 0.2), (20, 100, 2e9, 0.4), (30, 150, 3e9, 0.6)], quality=0.4)
    QualityPoint(trained=20, seen=100, flops=2000000000.0, quality=0.4, seconds=None)

    ```
    """
    return next((point for point in (QualityPoint(*one) for one in points) if point.quality >= quality), None)


def plot_quality(
    runs: Mapping[str, Sequence[Sequence[Any]]],
    path: str | os.PathLike[str],
    metric_name: str,
    baseline: str | None = None,
) -> None:
    """Plot the quality of runs against examples trained on, FLOPs and, where all points have them, seconds.

    A dotted line marks the final quality of the baseline. A ring marks the first evaluation of each other run with at
    least this quality, with the ratio of the two costs.

    Args:
        runs (`dict` of name to sequence of [`QualityPoint`] or of tuples like it):
            Evaluations of each run, in order.
        path (`str` or `os.PathLike`):
            The image file; its suffix decides the format.
        metric_name (`str`):
            Name of the quality, the label of the axis.
        baseline (`str`, *optional*):
            Name of the run that the others are compared with. Default: the run with the lowest final quality.

    Raises:
        ValueError: If there is no run, or a run has no evaluations.
    """
    # Imported here, so that importing this package does not import matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    empty = [name for name, points in runs.items() if not points]
    if empty or not runs:
        raise ValueError(
            f"runs={list(runs)} cannot be plotted (without points: {empty}); evaluate each at least once."
        )
    curves = {name: [QualityPoint(*point) for point in points] for name, points in runs.items()}
    costs = {"trained": "examples trained on", "flops": "FLOPs spent, scoring included"}
    if all(point.seconds is not None for points in curves.values() for point in points):
        costs["seconds"] = "seconds spent, scoring included"
    if baseline is None:
        baseline = min(curves, key=lambda name: curves[name][-1].quality)

    figure = Figure(figsize=(4.8 * len(costs), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # needs no display, and does not change pyplot's global state
    panels = figure.subplots(1, len(costs), sharey=True)
    for axes, (cost, label) in zip(panels, costs.items(), strict=True):
        _draw(axes, curves, baseline, cost, label)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_ylabel(metric_name)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(curves), frameon=False)
    figure.savefig(path)


def plot_selection(
    parts: Mapping[str, Sequence[tuple[int, float]]], path: str | os.PathLike[str], metric_name: str
) -> None:
    """Plot a metric of the selected and of the rejected examples of a run against the step.

    Args:
        parts (`dict` of name to sequence of `(int, float)`):
            Steps and values, by `"selected"` and `"rejected"`; a part without values is left out.
        path (`str` or `os.PathLike`):
            The image file; its suffix decides the format.
        metric_name (`str`):
            Name of the metric, the label of the axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (name, points), colour, marker in zip(parts.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(metric_name)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def _draw(axes: Axes, curves: Mapping[str, list[QualityPoint]], baseline: str, cost: str, label: str) -> None:
    target = curves[baseline][-1]
    axes.axhline(target.quality, color="0.4", linewidth=1.2, linestyle=":")
    below = 4  # points below a ring; one line lower for each label, since rings may lie close together
    for (name, points), colour, marker in zip(curves.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        costs = [getattr(point, cost) for point in points]
        axes.plot(costs, [point.quality for point in points], color=colour, marker=marker, markersize=5, label=name)
        reached = first_reaching(points, target.quality)
        if name == baseline or reached is None or getattr(reached, cost) <= 0:
            continue
        spent = getattr(reached, cost)
        axes.plot(spent, reached.quality, "o", markersize=15, fillstyle="none", color=colour, markeredgewidth=2)
        ratio = getattr(target, cost) / spent
        axes.annotate(
            f"{ratio:.1f}x fewer" if ratio >= 1 else f"{1 / ratio:.1f}x more",
            (spent, reached.quality),
            xytext=(14, -below),
            textcoords="offset points",
            va="top",
            color=colour,
            fontweight="bold",
        )
        below += 12
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
