# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains the runs of `tests/invariant` on the CPU and on another device, and compares them.

    python -m tests.device                                   # the simulated device
    python -m tests.device --device cuda --runs uniform,preset_jest

All steps must train on the same examples, with losses that are close. On a real device, whose products round
otherwise, only the loss of the first step must be close.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.invariant.comparison import walk
from tests.invariant.matrix import RUNS, SETTINGS
from tests.invariant.runner import train


EQUAL = ("flops",)
# Relative differences of losses. The simulated device takes other kernels of the same CPU.
CLOSE = {"far": 1e-3, "cuda": 0.02}


def can_run(name: str) -> bool:
    """Whether the simulated device can do a run: not in bf16, and not where transformers loads the learner.

    transformers leaves the position ids of a loaded model empty in a process with a backend that is made in Python.
    """
    return not RUNS[name].settings.get("bf16") and name != "models_by_path"


def play(name: str, device: str) -> tuple[dict[str, Any], list[str]]:
    """The record of a run on a device, and the operations after which the host waited for the simulated one."""
    place, settings, waits = nullcontext(), {"use_cpu": device == "cpu"}, []
    if device == "far":
        from tests.device import simulated

        place, waits = simulated.far_by_default(), simulated.waits
        settings["dataloader_pin_memory"] = False  # of which the simulated device has none
        waits.clear()
    with place, patch.dict(SETTINGS, settings):
        record = train(RUNS[name], name)
    return json.loads(json.dumps(record)), list(waits)


def differences(name: str, device: str) -> tuple[list[str], list[str]]:
    """What a run on a device does otherwise than on the CPU, a line each, and where the host waited."""
    here, _ = play(name, "cpu")
    there, waits = play(name, device)
    steps = list(here["batches"]) if device == "far" else ["step 1"]
    found = []
    for step in steps:
        one, other = (record["batches"].get(step) for record in (here, there))
        if other is None:
            return [f"{step} is missing"], waits
        ids = [side["sub_batch"]["ids"] for side in (one, other)]
        losses = [float(side["loss"]) for side in (one, other)]
        if device == "far" and ids[0] != ids[1]:
            found.append(f"{step} trains on {ids[0]} on the CPU, on {ids[1]}")
        if not abs(losses[0] - losses[1]) <= CLOSE[device] * abs(losses[0]):
            found.append(f"{step} has the loss {losses[0]} on the CPU, {losses[1]}")
    for item in EQUAL:
        found += [f"{path}: {one} on the CPU, {other}" for path, one, other in walk(here[item], there[item], item)]
    return found, waits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["far", "cuda"], default="far", help="far: the simulated device")
    parser.add_argument("--runs", type=lambda text: text.split(","), default=list(RUNS), help="names, with commas")
    parser.add_argument("--output", type=Path, help="file of what was found, as JSON")
    options = parser.parse_args()
    if options.device == "far":
        from tests.device import simulated  # before the first backward, which counts the devices  # noqa: F401
    torch.use_deterministic_algorithms(options.device == "far")
    torch.set_num_threads(1)
    if options.device == "far":
        options.runs = [name for name in options.runs if can_run(name)]
    results: dict[str, Any] = {}
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # runs write into folders of their names
        for name in options.runs:
            try:
                found, waits = differences(name, options.device)
            except Exception as error:
                traceback.print_exc()
                found, waits = [f"{type(error).__name__}: {error}"], []
            results[name] = {"differences": found, "waits": Counter(waits)}
            print(f"{name}: {'as on the CPU' if not found else found[0]}", flush=True)
        os.chdir(before)
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")
    return int(any(one["differences"] for one in results.values()))


if __name__ == "__main__":
    sys.exit(main())
