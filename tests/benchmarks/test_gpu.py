# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The script for a GPU runs from end to end on the CPU, with tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_dry_run(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
    environment = {**os.environ, "DEVICE": "cpu", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(["bash", script, tmp_path], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    selection, steps, runs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in NAMES)
    assert selection["device"] and selection["rows"][0]["ours_ms"] > 0
    assert steps["about"]["card"] and steps["arms"]["easy_reference, before decoding"]["mean"] > 0
    assert all(not run["differences"] for run in runs.values()) and len(runs) == 2


NAMES = ("selection", "steps", "runs")
