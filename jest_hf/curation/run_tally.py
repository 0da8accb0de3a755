# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the ledger of a run says, counted in one pass: how often each row was selected, scores, sources, samples."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jest_hf.report.ledger import ledger_steps, read_parts


COLUMNS = ["step", "example_id", "score", "source", "key"]
BINS = 20  # of the steps, for curves
MOST_KEPT = 100_000  # rows of a period whose scores are kept: a uniform sample, if there are more
MERGED_AT = 1 << 20  # ids that wait until they are counted
PERIODS = ("early", "late")


@dataclass
class Sample:
    """Rows of a period and their scores: int64 `[k]` and float32 `[k]`, NaN for a row without a score."""

    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass
class Tally:
    """
    A ledger, counted.

    Args:
        first, last (`int`): The first and the last step.
        edges (`np.ndarray`): Where each part of the run begins, in steps; `[n + 1]`, the last one is `last + 1`.
        ids, times (`np.ndarray`): Rows that were selected, and how often, int64 `[k]` each, by falling number.
        n_selected (`int`): Selections of all steps.
        periods (`dict`): The steps of `"early"` and `"late"`: the first and the last tenth of those with scores.
        samples (`dict`): By (part, period), where a part is `"selected"` or `"rejected"`, rows and their scores.
        means (`dict`): By part, the mean score in each part of the run, float `[n]`, NaN where there is none.
        sources (`dict`): By source, the rows selected in each part of the run, int64 `[n]`.
        has_keys (`bool`): Whether rows have string keys.
    """

    first: int
    last: int
    edges: np.ndarray
    ids: np.ndarray
    times: np.ndarray
    n_selected: int
    periods: dict[str, tuple[int, int]]
    samples: dict[tuple[str, str], Sample]
    means: dict[str, np.ndarray]
    sources: dict[str, np.ndarray]
    has_keys: bool

    @property
    def has_scores(self) -> bool:
        """Whether a score was recorded at all: earlier versions recorded none, and uniform steps have none."""
        return any(np.isfinite(means).any() for means in self.means.values())


def tally_ledger(path: Path) -> Tally:
    """
    Count a ledger, a group of rows at a time: memory grows with the rows of the data, and not with the steps.

    Raises:
        FileNotFoundError: if there is no ledger.
        ValueError: if a file of the ledger is damaged, is no ledger, or if nothing was selected.
    """
    first, last = ledger_steps(path)
    if last < first:
        raise ValueError(f"{path} has no selections yet; wait for the first checkpoint of the run, or for its end.")
    edges = np.unique(np.linspace(first, last + 1, min(BINS, last - first + 1) + 1).round().astype(np.int64))
    start = _first_scored(path) or first
    tenth = max(1, (last - start + 1) // 10)
    periods = {"early": (start, start + tenth - 1), "late": (last - tenth + 1, last)}
    counts = _Counts()
    sums = {part: np.zeros((2, len(edges) - 1)) for part in ("selected", "rejected")}
    sources: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(edges) - 1, np.int64))
    samples = {(part, period): Reservoir() for part in sums for period in PERIODS}
    has_keys = False
    for part in sums:
        for table in read_parts(path, rejected=part == "rejected", columns=COLUMNS):
            steps, ids, scores = _columns(table, path)
            bins = np.searchsorted(edges, steps, side="right") - 1
            scored = np.isfinite(scores)
            sums[part][0] += np.bincount(bins[scored], minlength=len(edges) - 1)
            sums[part][1] += np.bincount(bins[scored], scores[scored], minlength=len(edges) - 1)
            for period, (begin, end) in periods.items():
                inside = (begin <= steps) & (steps <= end)
                samples[part, period].add(ids[inside], scores[inside])
            if part == "selected":
                counts.add(ids)
                _count_sources(table, bins, sources)
                has_keys = has_keys or ("key" in table.column_names and table["key"].null_count < len(table))
    ids, times = counts.sorted()
    with np.errstate(invalid="ignore"):
        means = {part: total / number for part, (number, total) in sums.items()}
    kept = {name: one.sample() for name, one in samples.items()}
    return Tally(first, last, edges, ids, times, int(times.sum()), periods, kept, means, dict(sources), has_keys)


def keys_of(path: Path, ids: np.ndarray) -> dict[int, str]:
    """Return the string keys of some rows by id, for a ledger that has keys."""
    wanted = pa.array(np.unique(ids))
    found: dict[int, str] = {}
    for rejected in (False, True):
        for table in read_parts(path, rejected=rejected, columns=["example_id", "key"]):
            if "key" in table.column_names:
                chosen = table.filter(pc.is_in(table["example_id"], value_set=wanted))
                pairs = zip(chosen["example_id"].to_pylist(), chosen["key"].to_pylist(), strict=True)
                found |= {one: key for one, key in pairs if key is not None}
    return found


def _columns(table: pa.Table, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lacking = {"step", "example_id"} - set(table.column_names)
    if lacking or not all(pa.types.is_integer(table.schema.field(name).type) for name in ("step", "example_id")):
        raise ValueError(
            f"{path} is no ledger that this version reads (columns: {', '.join(table.column_names)}); report on it "
            "with the version of jest_hf that wrote it."
        )
    scores = np.full(len(table), np.nan, np.float32)
    if "score" in table.column_names:
        scores = table["score"].to_numpy().astype(np.float32)
    return table["step"].to_numpy(), table["example_id"].to_numpy(), scores


def _first_scored(path: Path) -> int | None:
    for table in read_parts(path, columns=["step", "score"]):
        if "score" in table.column_names and table["score"].null_count < len(table):
            return int(pc.min(table.filter(pc.is_valid(table["score"]))["step"]).as_py())
    return None


def _count_sources(table: pa.Table, bins: np.ndarray, sources: dict[str, np.ndarray]) -> None:
    if "source" not in table.column_names:
        return
    column = table["source"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    codes = column.indices.fill_null(-1).to_numpy()
    for code, name in enumerate(column.dictionary.to_pylist()):
        chosen = bins[codes == code]
        if len(chosen):
            own = sources[name]
            own += np.bincount(chosen, minlength=len(own))


class _Counts:
    """How often each id comes, merged whenever the ids that wait are as many as those that are known."""

    def __init__(self) -> None:
        self._ids, self._times = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._waiting: list[np.ndarray] = []

    def add(self, ids: np.ndarray) -> None:
        self._waiting.append(ids)
        if sum(map(len, self._waiting)) > max(len(self._ids), MERGED_AT):
            self._merge()

    def _merge(self) -> None:
        new, times = np.unique(np.concatenate([np.zeros(0, np.int64), *self._waiting]), return_counts=True)
        both, places = np.unique(np.concatenate([self._ids, new]), return_inverse=True)
        summed = np.zeros(len(both), np.int64)
        summed[places[: len(self._ids)]] = self._times
        summed[places[len(self._ids) :]] += times
        self._ids, self._times, self._waiting = both, summed, []

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        self._merge()
        order = np.argsort(-self._times, kind="stable")
        return self._ids[order], self._times[order]


class Reservoir:
    """A uniform sample of rows: those with the smallest of random numbers, so that it takes one pass."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._sample, self._draws = Sample(), np.zeros(0)

    def add(self, ids: np.ndarray, scores: np.ndarray) -> None:
        if not len(ids):
            return
        draws = np.concatenate([self._draws, self._rng.random(len(ids))])
        every = Sample(np.concatenate([self._sample.ids, ids]), np.concatenate([self._sample.scores, scores]))
        if len(draws) > MOST_KEPT:
            kept = np.argpartition(draws, MOST_KEPT)[:MOST_KEPT]
            every, draws = Sample(every.ids[kept], every.scores[kept]), draws[kept]
        self._sample, self._draws = every, draws

    def sample(self) -> Sample:
        return self._sample


__all__ = ["PERIODS", "Reservoir", "Sample", "Tally", "keys_of", "tally_ledger"]
