# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
Runs on the simulated device do what they do on the CPU.

Each test has a process of its own: the device is registered with torch for the length of a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
# Views, gradient caching, labels, a cache, a proxy, several selectors; `python -m tests.device` has all runs.
RUNS = ("gradient_cache_at_view", "preset_rho_loss", "cached_reference", "preset_active_clip", "compare_selectors")

pytestmark = pytest.mark.long


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_runs_are_those_of_the_cpu(tmp_path):
    output = tmp_path / "runs.json"
    result = python(tmp_path, "-m", "tests.device", "--runs", ",".join(RUNS), "--output", str(output))
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    runs = json.loads(output.read_text())
    assert list(runs) == list(RUNS)
    assert all(run["differences"] == [] and run["waits"] for run in runs.values())


def test_the_simulated_device_is_as_strict_as_a_gpu(tmp_path):
    script = tmp_path / "strict.py"
    script.write_text(
        """
import pytest, torch
from tests.device.simulated import waits

there = torch.arange(4.0, device="far")
assert str(there.device) == "far:0" and (there + 1).tolist() == [1, 2, 3, 4]
with pytest.raises(RuntimeError, match="two devices"):
    there + torch.ones(4)
with pytest.raises(TypeError, match="numpy"):
    there.numpy()
assert (there + torch.tensor(1.0)).sum().cpu() == 10  # a single number may lie on the CPU, as with CUDA
for wait in (torch.Tensor.item, lambda one: one.max().cpu(), torch.Tensor.nonzero, lambda one: one[one > 1]):
    waits.clear()
    wait(there[:1] if wait is torch.Tensor.item else there)
    assert len(waits) == 1, waits
waits.clear()
there[there.argsort()[:2]] = 7
assert not waits and there.requires_grad_().sum().backward() is None and there.grad.device == there.device
"""
    )
    result = python(tmp_path, str(script))
    assert result.returncode == 0, result.stderr


def test_a_tensor_on_the_wrong_device_is_found(tmp_path):
    script = tmp_path / "wrong.py"
    script.write_text(
        """
from tests.device import simulated  # first: it registers the device  # noqa: F401
from tests.device.__main__ import differences
from jest_hf.selection import RunningScores

total = RunningScores.total
RunningScores.total = lambda scores: total(scores).cpu()
try:
    differences("cached_reference", "far")
except RuntimeError as error:
    assert "two devices" in str(error), error
else:
    raise AssertionError("nothing was found")
"""
    )
    result = python(tmp_path, str(script))
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]


def test_a_step_of_selection_waits_for_the_device_at_most_eight_times(tmp_path):
    """From the marks of readable rows to the record of the step, without the waits of the Trainer and of the loader.

    `report/figures.py` copies without waiting, which the simulated device cannot do. `doubtful.py` waits when the
    trainer is made, and `health.py` at a log.

    Chunks add none: four times as many chunks wait as often.
    """
    script = tmp_path / "waits.py"
    script.write_text(
        """
from collections import Counter
from unittest.mock import patch

import torch

from tests.device import simulated  # noqa: F401
from tests.device.__main__ import play
from tests.invariant.matrix import SETTINGS

torch.use_deterministic_algorithms(True)
ours = ("selection/", "distributed/", "report/", "training/", "batch.py")
found = []
for n_chunks in (2, 8):
    with patch.dict(SETTINGS, {"n_chunks": n_chunks, "save_strategy": "no", "eval_strategy": "no"}):
        record, waits = play("preset_jest", "far")
    steps = len(record["batches"])
    places = Counter(wait.partition(" at ")[2] for wait in waits)
    elsewhere = ("report/figures.py", "training/doubtful.py", "training/health.py")
    waited = {place: count for place, count in places.items() if not place.startswith(elsewhere)}
    mine = {place: count for place, count in waited.items() if place.startswith(ours)}
    assert steps == 4 and 0 < sum(mine.values()) <= 8 * steps, mine
    found.append(sum(mine.values()))
assert found[0] == found[1], found
print(found, mine)
"""
    )
    result = python(tmp_path, str(script))
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
