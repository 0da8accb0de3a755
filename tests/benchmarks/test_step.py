# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of Flexi-JEST run, and their tables say what their measurements say."""

from __future__ import annotations

import json

import pytest

from benchmarks import flexi, step


def test_steps_are_compared_with_iid_and_with_the_prediction(tmp_path):
    output = tmp_path / "step.json"
    step.main(["--quick", "--threads", "1", "--rounds", "1", "--output", str(output)])
    arms = json.loads(output.read_text())["results"]["0.5"]
    # f = 0.5 scores two examples for each that is trained on: 1 + 2/3, and 1 + 4/3 with a live reference.
    assert arms["JEST, cached reference"]["predicted"] == pytest.approx(5 / 3, rel=0.01)
    assert arms["JEST, live reference"]["predicted"] == pytest.approx(7 / 3, rel=0.01)
    assert arms["Flexi-JEST, cached reference"]["predicted"] < arms["JEST, cached reference"]["predicted"]
    for arm in arms.values():
        for clock in ("wall", "cpu"):
            assert 0 < arm[clock]["low"] <= arm[clock]["ratio"] <= arm[clock]["high"]
            assert arm[clock]["off"] == pytest.approx(arm[clock]["ratio"] / arm["predicted"] - 1)


def test_settings_of_an_arm():
    assert flexi.settings_of("drop:0.5/0.25") == {
        "scoring_view": "drop:0.5",
        "low_resolution_fraction": 0.25,
        "eval_at_view": True,
    }


def test_an_arm_is_compared_at_equal_trained_examples():
    def run(qualities: list[float], flops: float) -> dict:
        points = [
            {"trained": 100 * n, "quality": quality, "flops": flops * n} for n, quality in enumerate(qualities, 1)
        ]
        return {"trained": 100 * len(qualities), "validation": points, "test": {"R@5": qualities[-1]}}

    seed = {"IID": run([0.0, 0.1, 0.9], 1.0), "JEST": run([0.1, 0.3], 3.0), "patch:16/0.5": run([0.0, 0.25], 2.0)}
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in flexi.table({0: seed}).splitlines()]
    rows = {line[0]: line[1:] for line in lines[2:]}
    assert rows["IID"] == ["1", "1.00", "0.100", "0%", "0.100", "", "", ""]  # on the way to its 300 examples
    assert rows["JEST"] == ["1", "3.00", "0.300", "100%", "0.300", "0.300", "", ""]
    assert rows["patch:16/0.5"] == ["1", "2.00", "0.250", "75%", "0.167", "0.250", "", ""]
