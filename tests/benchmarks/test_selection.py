# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The selection benchmark compares like with like: both of its ways to select draw the same sub-batch."""

from __future__ import annotations

import json
import sys

import torch

from benchmarks import selection


def test_the_literal_algorithm_of_the_benchmark_draws_the_same():
    models = selection.make_models(300, 16)
    assert torch.equal(selection.literal(*models, 70, 6), selection.ours(*models, 70, 6))


def test_products_are_those_of_every_chunk_but_the_last(monkeypatch):
    shapes = []
    monkeypatch.setattr(selection.torch, "mm", lambda rows, columns, out: shapes.append(tuple(out.shape)))
    selection.products(*selection.make_models(300, 16), 70, 6)
    assert sum(rows * columns for rows, columns in shapes) == 4 * 300 * (70 - 11)


def test_the_table_of_a_device_is_of_the_same_selection(tmp_path, monkeypatch, capsys):
    models = selection.make_models(300, 16)
    assert torch.equal(selection.on_device(*models, 60, 16, "float32"), selection.ours(*models, 60, 16))
    output = tmp_path / "selection.json"
    monkeypatch.setattr(sys, "argv", ["selection.py", "--device", "cpu", "--quick", "--output", str(output)])
    selection.main()
    rows = json.loads(output.read_text())["rows"]
    assert [(row["size"], row["sub_batch"], row["precision"]) for row in rows] == [
        (256, 51, "float32"), (512, 102, "float32"),
    ]  # fmt: skip
    assert all(row["ours_ms"] > row["noise_ms"] > 0 and row["products_ms"] > 0 for row in rows)
    assert "ours/products" in capsys.readouterr().out
