# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of scores runs, and its figure is the area under the ROC curve."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import score


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    scores = np.array([3.0, 1.0, 2.0, 2.0, 0.0])
    right = np.array([True, False, True, False, True])
    pairs = [(one > other) + 0.5 * (one == other) for one in scores[right] for other in scores[~right]]
    assert score.roc_auc(scores, right) == pytest.approx(np.mean(pairs))


def test_it_runs_and_shows_what_it_measured(tmp_path, capsys):
    output = tmp_path / "score.json"
    score.main(["--quick", "--output", str(output)])
    results = json.loads(output.read_text())
    assert set(results["auc"]) == set(score.SCORES) and results["rows_a_second"]["ratio"] > 0
    said = capsys.readouterr().out
    assert f"| {results['auc']['learnability']['aligned']:.3f} " in said
    assert f"{results['rows_a_second']['ratio']:.2f}." in said
