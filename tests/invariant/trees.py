# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The two packages in a temporary folder, and processes that import one of them and train the matrix."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[2]
PATIENCE = 240  # seconds without a new record: the processes wait for each other, and will go on doing so
RUNNER = "tests.invariant.runner"

# By run, by rank: what the runner has written.
Records = dict[str, dict[str, Any]]


@contextmanager
def base_tree(base: str, folder: Path) -> Iterator[Path]:
    """The tree of a commit (`git worktree`, removed afterwards), or that in a folder, with the package in it."""
    if Path(base).is_dir():
        yield copy_package(Path(base), folder / "base")
        return
    tree = folder / "base"
    commit = git("rev-parse", "--verify", f"{base}^{{commit}}")
    git("worktree", "add", "--detach", str(tree), commit)
    try:
        _place_templates(tree)
        yield tree
    finally:
        git("worktree", "remove", "--force", str(tree))


def copy_package(root: Path, tree: Path) -> Path:
    """A copy of the package as it lies in `root`, committed or not: edits during the runs do no harm."""
    for name in ("jest_hf", "model_cards"):
        if (root / name).is_dir():
            shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    _place_templates(tree)
    return tree


def _place_templates(tree: Path) -> None:
    """
    The card templates where an installation has them. Without this an editable installation would hand out those of
    its own tree, which is neither of the two.
    """
    inside = tree / "jest_hf" / "model_cards"
    if (tree / "model_cards").is_dir() and not inside.exists():
        inside.symlink_to(Path("..") / "model_cards")


def copy_harness(folder: Path) -> Path:
    """A copy of this folder, from which both packages are run."""
    target = folder / "harness"
    shutil.copytree(
        ROOT / "tests" / "invariant",
        target / "tests" / "invariant",
        ignore=shutil.ignore_patterns("__pycache__", "test_*"),
    )
    shutil.copy(ROOT / "tests" / "__init__.py", target / "tests" / "__init__.py")
    return target


class Job:
    """
    Processes that train runs of the matrix together with the package of one tree.

    Args:
        tree (`Path`): Where `jest_hf` lies.
        harness (`Path`): See [`copy_harness`].
        folder (`Path`): A new folder of this job.
        runs (sequence of `str`): Names of runs.
        n_processes (`int`): 1, or more with DDP over gloo.
        mutation (`str`, *optional*): Name of a mutation.
    """

    def __init__(
        self,
        tree: Path,
        harness: Path,
        folder: Path,
        runs: Sequence[str],
        n_processes: int = 1,
        mutation: str | None = None,
    ) -> None:
        self.folder, self.runs, self.n_processes = folder, list(runs), n_processes
        work = folder / "work"
        work.mkdir(parents=True)
        (folder / "records").mkdir()
        job = {"runs": self.runs, "folder": str(folder / "records"), "tree": str(tree), "mutation": mutation}
        (folder / "job.json").write_text(json.dumps(job))
        launched = []
        if n_processes > 1:
            preset = tree / "jest_hf" / "configs" / "ddp.yaml"
            launched = ["accelerate.commands.launch", "--main_process_port", "0", "--config_file", str(preset)]
            launched += ["--num_processes", str(n_processes), "--module"]
        line = [sys.executable, "-m", *launched, RUNNER, str(folder / "job.json")]
        environment = os.environ | {
            # The harness first: the tree of a commit has tests of its own.
            "PYTHONPATH": f"{harness}{os.pathsep}{tree}",
            "PYTHONHASHSEED": "0",
            "PYTHONWARNINGS": "ignore",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "MPLBACKEND": "Agg",
        }
        self._start = time.perf_counter()
        self._output = open(folder / "output.txt", "w")  # noqa: SIM115
        self._process = subprocess.Popen(
            line, cwd=work, env=environment, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def wait(self) -> Records:
        """The records of all runs, once the processes have ended."""
        n_records, last = 0, time.perf_counter()
        try:
            while self._process.poll() is None:
                found = len(list((self.folder / "records").glob("*.json")))
                if found > n_records:
                    n_records, last = found, time.perf_counter()
                if time.perf_counter() - last > PATIENCE:
                    print(f"{self.folder.name}: no new record for {PATIENCE} s, ended", file=sys.stderr)
                    break
                time.sleep(0.2)
        finally:
            self.end()
        self.seconds = time.perf_counter() - self._start
        return read_records(self.folder / "records")

    def end(self) -> None:
        """Whatever is still running, with all its processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)  # accelerate then ends the processes that it has started
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._output.close()

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()


def read_records(folder: Path) -> Records:
    records: Records = {}
    for path in sorted(folder.glob("*.json")):
        name, rank, _ = path.name.rsplit(".", 2)
        records.setdefault(name, {})[rank] = json.loads(path.read_text())
    return records


def run_together(jobs: Sequence[Any]) -> list[tuple[Job, Records]]:
    """Start these jobs (functions that make them) at the same time, and wait for all."""
    started: list[Job] = []
    try:
        started.extend(make() for make in jobs)
        return [(job, job.wait()) for job in started]
    finally:
        for job in started:
            job.end()


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, text=True, capture_output=True).stdout.strip()
