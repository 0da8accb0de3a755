# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Start runs, kill them with SIGKILL at random moments, let them go on, and compare them with one that was left."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from jest_hf.report import read_selections
from tests.kills.training import STEPS, Job, work


TIMEOUT = 300  # seconds that a run may take
LAST = f"checkpoint-{STEPS}"


@dataclass
class Tally:
    """What happened to the runs of one number of processes."""

    kills: int = 0
    while_saving: int = 0
    resumed: int = 0
    fresh: list[str] = field(default_factory=list)
    set_aside: int = 0


class Run:
    """The processes of a run, which have just been started."""

    def __init__(self, folder: Path, world_size: int = 1, **options: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.kills.training"])
        store = tempfile.mktemp(prefix="store-", dir=folder.parent)
        self.jobs = [Job(str(folder), rank, world_size, store, **options) for rank in range(world_size)]
        for job in self.jobs:
            job.outcome.unlink(missing_ok=True)
        self.processes = [context.Process(target=work, args=(job,), daemon=True) for job in self.jobs]
        for process in self.processes:
            process.start()
        self.folder = folder

    @property
    def is_over(self) -> bool:
        return not any(process.is_alive() for process in self.processes)

    def kill(self, chance: random.Random) -> bool:
        """Kill all processes, one shortly after the other; whether they were alive."""
        alive = not self.is_over
        for process in chance.sample(self.processes, len(self.processes)):
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(chance.uniform(0, 0.01))
        for process in self.processes:
            process.join()
        return alive

    def wait(self) -> list[dict[str, Any]]:
        """Wait for the end; how each process ended."""
        end = time.monotonic() + TIMEOUT
        for process in self.processes:
            process.join(timeout=max(0.0, end - time.monotonic()))
        if not self.is_over:
            self.kill(random.Random(0))
            raise TimeoutError(f"a run in {self.folder} was not over after {TIMEOUT} s")
        return [json.loads(job.outcome.read_text()) for job in self.jobs]


def finish(folder: Path, world_size: int, tally: Tally | None = None, **options: Any) -> None:
    """Let a run go on to its end; an `AssertionError` if it fails."""
    outcomes = Run(folder, world_size, **options).wait()
    errors = [outcome["error"] for outcome in outcomes if outcome["error"]]
    assert not errors, f"{folder}: {errors}"
    if tally is not None:
        if outcomes[0]["fresh"]:
            tally.fresh.append(outcomes[0]["fresh"])
        else:
            tally.resumed += 1


def left_alone(folder: Path, world_size: int) -> Path:
    """The folder of a run that was not killed, which is made once."""
    whole = folder / f"whole-{world_size}"
    if not whole.exists():
        finish(whole, world_size)
    return whole


def kill_at_random(folder: Path, world_size: int, chance: random.Random, tally: Tally, seconds: float) -> bool:
    """Start a run, or go on with it, and kill it; whether it was still alive. Half of the kills are while it saves."""
    run = Run(folder, world_size)
    if chance.random() < 0.5:
        known = {path.name for path in folder.glob("checkpoint-*")}
        skipped = chance.randrange(3)
        while not run.is_over and len({path.name for path in folder.glob("checkpoint-*")} - known) <= skipped:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.08))
    else:
        time.sleep(chance.uniform(0, seconds))
    alive = run.kill(chance)
    tally.kills += alive
    tally.while_saving += alive and any(is_being_saved(path) for path in folder.glob("checkpoint-*"))
    return alive


def kill_after(folder: Path, world_size: int, checkpoint: str) -> None:
    """Start a run, and kill it as soon as a checkpoint is whole."""
    run = Run(folder, world_size)
    while not run.is_over and is_being_saved(folder / checkpoint):
        time.sleep(0.001)
    run.kill(random.Random(0))


def is_being_saved(checkpoint: Path) -> bool:
    with suppress(FileNotFoundError):
        return json.loads((checkpoint / "jest_manifest.json").read_text())["complete"] is False
    return True


def contents(folder: Path, world_size: int) -> dict[str, Any]:
    """What a run has made: the last checkpoint (weights, optimizer, random states, counts), the proxy, the ledger."""
    last = folder / LAST
    state = json.loads((last / "trainer_state.json").read_text())
    counts = state["stateful_callbacks"]["RunStatistics"]["attributes"]
    found: dict[str, Any] = {"counts": counts, "ledger": read_selections(folder / "selections.parquet").to_pydict()}
    for path in sorted(last.rglob("*.safetensors")):
        found[str(path.relative_to(last))] = load_file(path)
    for path in sorted(path for path in last.rglob("*") if path.suffix in (".pt", ".pth")):
        found[str(path.relative_to(last))] = torch.load(path, weights_only=False)
    assert len(list(last.glob("rng_state*.pth"))) == world_size
    return found


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """The places at which two contents differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        names = sorted({*left, *right}, key=str)
        return [found for name in names for found in differences(left.get(name), right.get(name), f"{where}/{name}")]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        return [
            found
            for number, pair in enumerate(zip(left, right, strict=True))
            for found in differences(*pair, f"{where}/{number}")
        ]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return [] if left.dtype == right.dtype and torch.equal(left, right) else [where]
    same = left == right
    return [] if (same if isinstance(same, bool) else same.all()) else [where]


def try_kills(kills: int, world_size: int, folder: Path, seed: int, per_run: int = 4) -> Tally:
    """
    Kill runs until there were so many kills; each run is killed up to `per_run` times and then goes on to its end.

    Raises:
        AssertionError: if a run cannot go on, or ends otherwise than one that was left alone.
    """
    chance, tally = random.Random(seed), Tally()
    whole = left_alone(folder, world_size)
    seconds = json.loads(Job(str(whole)).outcome.read_text())["seconds"]
    expected = contents(whole, world_size)
    number = 0
    while tally.kills < kills:
        number += 1
        run = folder / f"run-{world_size}-{number}"
        for _ in range(chance.randint(1, min(per_run, kills - tally.kills))):
            if not kill_at_random(run, world_size, chance, tally, seconds):
                break
        finish(run, world_size, tally)
        found = differences(expected, contents(run, world_size))
        assert not found, f"seed {seed}, run {number} on {world_size} processes differs in {found[:5]}; see {run}"
        tally.set_aside += len(list(run.glob("incomplete-checkpoint-*")))
        shutil.rmtree(run)
    return tally


def fill_the_disk(world_size: int, folder: Path) -> list[str]:
    """
    A run whose files may not grow to an optimizer state, then one with room; the errors of the first.

    Raises:
        AssertionError: if the first does not fail, or the second ends otherwise than one that was left alone.
    """
    run = folder / f"full-{world_size}"
    kill_after(run, world_size, "checkpoint-4")
    limit = (run / "checkpoint-4" / "optimizer.pt").stat().st_size // 2
    errors = [outcome["error"] for outcome in Run(run, world_size, file_limit=limit).wait()]
    _go_on_with_room(run, world_size, folder, errors)
    return errors


def fill_a_small_disk(world_size: int, folder: Path) -> list[str] | None:
    """As [`fill_the_disk`], on a disk of its own with room for two checkpoints and a half; `None` without the right
    to mount one."""
    whole, run = left_alone(folder, world_size), folder / f"small-{world_size}"
    size = sum(path.stat().st_size for path in (whole / LAST).rglob("*") if path.is_file())
    run.mkdir()
    options = f"size={size * 5 // 2 // 1024}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", run], capture_output=True).returncode != 0:
        return None
    try:
        errors = [outcome["error"] for outcome in Run(run, world_size).wait()]
        subprocess.run(["mount", "-o", "remount,size=64m", run], check=True)
        _go_on_with_room(run, world_size, folder, errors)
        return errors
    finally:
        subprocess.run(["umount", run], check=True)


def _go_on_with_room(run: Path, world_size: int, folder: Path, errors: list[str]) -> None:
    assert errors[0], "a full disk was not noticed"
    whole = left_alone(folder, world_size)
    tally = Tally()
    finish(run, world_size, tally)
    assert tally.resumed == 1, f"started again: {tally.fresh}"
    found = differences(contents(whole, world_size), contents(run, world_size))
    assert not found, f"after a full disk on {world_size} processes: {found[:5]}"
