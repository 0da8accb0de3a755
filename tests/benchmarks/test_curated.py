# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Offline selection at equal FLOPs on a few random pairs: scores and the learner that they need are paid for."""

from __future__ import annotations

import importlib
import json

import pytest

from tests.benchmarks.test_equal_flops import equal_flops, methods, parts


curated = importlib.import_module("curated")  # test_equal_flops has put the folder of benchmarks on the path


def test_curated_arms_pay_for_their_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(methods.DATA, "cross_style", parts)
    monkeypatch.setitem(equal_flops.SETTINGS["cross_style"], "reference_steps", 2)
    monkeypatch.setattr(curated, "SCORING", {"batch_size": 8, "draws": 2})
    monkeypatch.setattr(curated, "LEARNER_STEPS", 3)
    words = ["--results", str(tmp_path), "--work", str(tmp_path / "work"), "--batch_size", "8", "--steps", "32"]
    words += ["--rates", "1e-3", "--evaluations", "1", "--seeds", "0", "--arms", "iid", *curated.CURATED]
    curated.main(words)
    results = json.loads((tmp_path / "equal_flops_cross_style.json").read_text())
    iid = results["runs"]["iid/0"]
    budget, of_step = iid["evaluations"][-1]["flops"], iid["flops_per_step"]
    spent = {}
    for arm in curated.CURATED:
        run = results["runs"][f"{arm}/0"]
        assert run["kept"] == 29 and run["flops_per_step"] == of_step  # 0.3 of 96 rows
        spent[arm] = run["flops_before"]
        assert spent[arm] + run["steps"] * of_step == pytest.approx(run["evaluations"][-1]["flops"])
        assert budget - of_step < run["evaluations"][-1]["flops"] <= budget
        assert results["tuning"][arm]["0.001"]["evaluations"][-1]["flops"] <= budget / 2
    by_reference, by_learnability = spent.values()
    a_pass = 96 / 8 * of_step / 3
    assert a_pass < by_reference < 1.1 * a_pass  # and the products of pairs
    assert by_learnability == pytest.approx(2 * by_reference + 3 * of_step)

    monkeypatch.setattr(equal_flops, "train", lambda *_, **__: pytest.fail("trains again"))
    capsys.readouterr()
    curated.main([*words, "--report"])
    table = capsys.readouterr().out
    assert all(f"| {arm} " in table for arm in curated.CURATED)
