# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The comparison at equal FLOPs on a few random pairs: every arm spends the budget, and nothing is measured twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import pytest

from tests.helpers import random_rows


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import equal_flops  # noqa: E402
import methods  # noqa: E402


ARMS = ["iid", "joint/easy_reference/0.5", "two_stage"]


def parts(seed: int) -> dict[str, datasets.Dataset]:
    def rows(n: int, number: int) -> datasets.Dataset:
        made = [
            {"image": row["image"], "caption": row["text"], "noise": "aligned" if i % 2 else "shuffled", "group": i}
            for i, row in enumerate(random_rows(n, seed=number))
        ]
        return datasets.Dataset.from_list(made)

    return {
        "pool": rows(96, seed),
        "curated": rows(32, 1),
        "validation": rows(16, 2),
        "test": rows(16, 3),
    }


def test_every_arm_spends_as_much_and_is_measured_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(methods.DATA, "cross_style", parts)
    monkeypatch.setitem(equal_flops.SETTINGS["cross_style"], "reference_steps", 2)
    words = ["--results", str(tmp_path), "--work", str(tmp_path / "work"), "--batch_size", "8", "--steps", "16"]
    words += ["--rates", "1e-3", "2e-3", "--evaluations", "2", "--seeds", "0", "--arms", *ARMS]
    equal_flops.main(words)
    results = json.loads((tmp_path / "equal_flops_cross_style.json").read_text())
    assert set(results["tuning"]) == set(equal_flops.ARMS.values())
    iid = results["runs"]["iid/0"]
    budget = iid["evaluations"][-1]["flops"]
    assert iid["steps"] == 16 and iid["flops_before"] == 0
    for arm in ARMS[1:]:
        run = results["runs"][f"{arm}/0"]
        spent = run["flops_before"] + run["steps"] * run["flops_per_step"]
        assert run["flops_before"] > 0
        assert spent == pytest.approx(run["evaluations"][-1]["flops"])
        assert spent <= budget < spent + run["flops_per_step"]
        tried = results["tuning"][equal_flops.ARMS[arm]]
        assert set(tried) == {"0.001", "0.002"}
        best = max(tried, key=lambda rate: tried[rate]["evaluations"][-1]["quality"])
        assert run["learning_rate"] == float(best)
        assert tried[best]["evaluations"][-1]["flops"] <= budget / 2

    with pytest.raises(ValueError, match="--steps=4 does not pay for one step of joint/learnability/0.8"):
        equal_flops.main([*words[:6], "--steps", "4", "--seeds", "1", "--arms", "two_stage"])

    monkeypatch.setattr(equal_flops, "train", lambda *_, **__: pytest.fail("trains again"))
    capsys.readouterr()
    equal_flops.main(words)
    table = capsys.readouterr().out
    assert all(f"| {arm} " in table for arm in ARMS)
