# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Start a training script as a user does, with `accelerate launch` and a preset of ours, on CPUs.

What accelerate makes of a launch differs from what one would think (distributed_type FSDP on CPUs trains every process
by itself), so nothing here is simulated: these are real processes, real gloo groups and real DeepSpeed engines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jest_hf.cli import preset_flags


ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("train_script.py")
TIMEOUT = 180  # seconds


def launch(
    preset: str, folder: Path, runs: Sequence[Mapping[str, Any]], world_size: int = 2
) -> list[list[dict[str, Any]]]:
    """
    Train in `world_size` processes, several runs one after the other in the same processes.

    Args:
        preset (`str`): Name of a preset.
        folder (`Path`): Where the processes write what they report.
        runs (sequence of mappings): Arguments of `train_script.train`, one mapping for each run.
        world_size (`int`, *optional*, defaults to 2): Number of processes.

    Returns:
        For each run what each rank reports, in the order of ranks.
    """
    output = start(preset_of(preset, world_size), folder, runs)
    assert output.returncode == 0, f"{preset}: exit code {output.returncode}\n{tail(output)}"
    return reports(folder, world_size)


def preset_of(name: str, world_size: int = 2) -> list[str]:
    """The flags of `accelerate launch` for a preset and a number of processes."""
    return [*preset_flags(name).split(), "--num_processes", str(world_size)]


def reports(folder: Path, world_size: int = 2) -> list[list[dict[str, Any]]]:
    """What the ranks wrote into `folder` about the runs that they came to the end of."""
    by_rank = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world_size)]
    return [list(ranks) for ranks in zip(*by_rank, strict=True)]


def start(flags: Sequence[str], folder: Path, runs: Sequence[Mapping[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Run `accelerate launch` with `flags` on the script, to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "runs.json"
    settings.write_text(json.dumps(list(runs)))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]  # any free port
    line = [*accelerate, *flags, str(SCRIPT), str(settings)]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "PYTHONWARNINGS": "ignore",  # the end of the output is for what went wrong
    }
    process = subprocess.Popen(
        line,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that a job that hangs can be ended with all its processes
    )
    try:
        printed, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        raise AssertionError(f"{' '.join(line)} hangs:\n{printed[-8000:]}") from None
    return subprocess.CompletedProcess(line, process.returncode, printed)


def without_compiled_operators() -> None:
    """
    Keep DeepSpeed from compiling its shared-memory collectives, before the process group is made; gloo serves as well.

    The compilation takes minutes on a new machine, and a job that is killed in the middle leaves a lock that makes the
    next one wait for ever.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def tail(output: subprocess.CompletedProcess[str], length: int = 8000) -> str:
    """The end of what a job printed, for the message of an assertion."""
    return output.stdout[-length:]
