# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of scale counts what it says, and what it counts keeps the bars."""

from __future__ import annotations

import pytest
import torch

from benchmarks import scale
from tests.distributed.processes import run


def test_compute_and_memory_fall_with_the_ranks_and_traffic_keeps_its_bound(monkeypatch):
    # Not the benchmark's own fresh interpreters, which take seconds to import what they need.
    monkeypatch.setattr(scale, "measure", lambda world_size, _, shape: run(world_size, scale.draw_share, *shape))
    shape = size, width, sub_batch, n_chunks = 1024, 32, 128, 8
    one, two = scale.measured_rows([1, 2], 1, shape)
    assert one["flops"] == scale.selection_flops(size, sub_batch, n_chunks, width)
    assert one["embedding_bytes"] == 4 * 4 * size * width
    for row, n_rows in ((one, size), (two, size // 2)):
        assert row["running_sum_bytes"] == 4 * 8 * n_rows + 8  # and a count of broken scores
    for name in ("flops", "embedding_bytes", "noise_bytes"):
        assert two[name] == one[name] / 2
    assert 0 < two["peak_other_bytes"] < one["embedding_bytes"]
    assert one["received_per_chunk"] == 0
    assert 0 < two["received_per_chunk"] <= two["received_per_chunk_bound"] == 2 * 16 * 16 + 16 * 4 * 4 * width


def test_another_sub_batch_is_noticed(monkeypatch):
    drawn = iter([[1, 2], [2, 1]])
    monkeypatch.setattr(scale, "measure", lambda *_: [{"indices": next(drawn), "flops": 0, "received_per_chunk": [0]}])
    with pytest.raises(AssertionError, match="rank 0 of 2 drew another sub-batch"):
        scale.measured_rows([1, 2], 1, (8, 4, 2, 1))


def test_live_bytes_are_those_alive_at_once():
    given = torch.zeros(100)
    with scale.LiveBytes(given) as memory:
        given[:50].add_(1)  # no memory of its own
        for _ in range(3):
            torch.zeros(10).view(2, 5).add(1)
        kept = torch.zeros(20)
        del kept
    assert (memory.live, memory.peak) == (0, 2 * 10 * 4)


def test_plan_at_the_scale_of_the_paper(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scale.py", "--plan"])
    scale.main()
    lines = capsys.readouterr().out.splitlines()
    assert "B = 163840, D = 768, b = 32768, N = 16" in lines[0]
    first = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert first[:3] == ["8", "20,480", "240"]  # 20,480 examples of two models, image and text, 768 float32
    per_cent = [float(line.split("|")[2]) for line in lines if line.startswith("| products")]
    assert len(per_cent) == 4
    assert 0.1 < min(per_cent) < max(per_cent) < 1.0
