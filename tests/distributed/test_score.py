# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Scores made by several processes: the same bytes as from one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from jest_hf.curation import open_scores
from tests.distributed.launching import ROOT, TIMEOUT, preset_of
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


pytestmark = pytest.mark.long


def test_the_command_on_two_processes_and_on_one(tmp_path: Path) -> None:
    """As a user starts it; the line about the scores is printed once."""
    for seed, name in enumerate(("learner", "reference")):
        for part in (tiny_siglip(seed), tiny_siglip_processor()):
            part.save_pretrained(tmp_path / name)
    rows = random_rows(50)
    rows[7]["image"] = None
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    flags = ["score", "--learner", "learner", "--ref_model", "reference", "--dataset", "rows.parquet"]
    flags += ["--batch_size", "8", "--draws", "4", "--shard_rows", "16"]
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--main_process_port",
        "0",
        *preset_of("ddp"),
        "-m",
    ]
    for name, line in (("one", [sys.executable, "-m", "jest_hf.cli"]), ("two", [*launcher, "jest_hf.cli"])):
        output = subprocess.run(
            [*line, *flags, "--output_dir", name],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert output.returncode == 0, output.stderr[-4000:]
        said = output.stdout.strip().splitlines()[-1]
        assert said.startswith(f"{name}: 50 rows (1 broken), learner_loss, reference_loss, learnability; rank corr")
        assert output.stdout.count("50 rows") == 1 and "Scoring: 100%" in output.stderr
    one, two = open_scores(tmp_path / "one"), open_scores(tmp_path / "two")
    assert len(one.manifest["shards"]) == 4 and one.manifest == two.manifest
