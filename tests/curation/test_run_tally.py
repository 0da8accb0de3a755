# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The counts of a ledger against plain loops over its rows."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch

from jest_hf.curation import run_tally
from jest_hf.curation.run_tally import keys_of, tally_ledger
from jest_hf.report import SelectionLedger, read_rejected, read_selections


def written(path, steps, size, n_rows, flush_every=7, sources=("a", "b", "$c"), rejected=3):
    """A ledger of random rows, without scores in its first two steps."""
    rng = np.random.default_rng(0)
    ledger = SelectionLedger(path)
    for step in range(1, steps + 1):
        scores = [math.nan] * size if step <= 2 else rng.normal(size=size).tolist()
        names = None if sources is None else rng.choice(sources, size).tolist()
        ids = rng.integers(n_rows, size=size).tolist()
        ledger.record(step, ids, scores=scores, sources=names, keys=[f"k{one}" if one % 2 else None for one in ids])
        ledger.record_rejected(step, rng.integers(n_rows, size=rejected).tolist(), scores=rng.normal(size=rejected))
        if step % flush_every == 0:
            ledger.flush()
    ledger.close()
    return path


def test_counts_are_those_of_plain_loops(tmp_path, monkeypatch):
    monkeypatch.setattr(run_tally, "MERGED_AT", 10)
    path = written(tmp_path / "selections.parquet", steps=52, size=9, n_rows=40)
    tally, rows = tally_ledger(path), read_selections(path).to_pylist()
    assert dict(zip(tally.ids.tolist(), tally.times.tolist(), strict=True)) == Counter(r["example_id"] for r in rows)
    assert tally.times.tolist() == sorted(tally.times.tolist(), reverse=True)
    assert (tally.first, tally.last, tally.n_selected) == (1, 52, 52 * 9)
    assert tally.edges[0] == 1 and tally.edges[-1] == 53 and len(tally.edges) == 21
    parts = {"selected": rows, "rejected": read_rejected(path).to_pylist()}
    for part, of_part in parts.items():
        for place, (begin, end) in enumerate(zip(tally.edges, tally.edges[1:], strict=False)):
            inside = [row for row in of_part if begin <= row["step"] < end]
            scores = [row["score"] for row in inside if row["score"] is not None]
            if scores:
                assert tally.means[part][place] == pytest.approx(np.mean(scores), abs=1e-6)
            else:
                assert math.isnan(tally.means[part][place])
            if part == "selected":
                counted = {name: int(counts[place]) for name, counts in tally.sources.items() if counts[place]}
                assert counted == Counter(row["source"] for row in inside)
        for period, (begin, end) in tally.periods.items():
            expected = Counter((r["example_id"], r["score"]) for r in of_part if begin <= r["step"] <= end)
            sample = tally.samples[part, period]
            assert Counter(zip(sample.ids.tolist(), sample.scores.tolist(), strict=True)) == expected
    assert tally.periods == {"early": (3, 7), "late": (48, 52)}  # of the steps with scores, a tenth
    assert keys_of(path, np.arange(10)) == {one: f"k{one}" for one in range(1, 10, 2)}


def test_of_many_rows_a_uniform_sample_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(run_tally, "MOST_KEPT", 500)
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    for part in range(4):
        ledger.record(1, range(1000 * part, 1000 * (part + 1)), scores=torch.zeros(1000))
        ledger.flush()
    sample = tally_ledger(ledger.path).samples["selected", "early"]
    assert len(sample.ids) == len(set(sample.ids.tolist())) == 500 and len(sample.scores) == 500
    assert np.bincount(sample.ids // 1000) == pytest.approx(125, abs=45)


def test_memory_does_not_grow_with_the_steps(tmp_path):
    peaks = []
    for steps in (40, 400):
        path = written(tmp_path / f"{steps}.parquet", steps, 2000, 5000, flush_every=10, sources=None)
        tracemalloc.start()
        tally_ledger(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] + 20e6
