# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a step costs with another commit of this package, and with this tree: two processes that take turns.

    python benchmarks/against.py --base 2850542            # a table, and benchmarks/results/against.json
    python benchmarks/against.py --base 2850542 --quick    # few steps, to see that it runs

Both processes train the same thing. Each is held after every block of steps until the other has trained a block, in an
order that is turned each round, so that whatever else the machine does hits both alike. A round gives one ratio, of
the seconds of CPU time that the two took; the table has the median of the ratios and a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "against.json"
ARMS = {
    "uniform": {"selection": "uniform"},
    "joint": {"selection": "joint"},
    "joint, cached reference": {"selection": "joint", "cache_reference": True},
}


def train_in_blocks(arm: str, steps: int, block: int) -> None:
    """The worker: trains, and after each block prints its CPU seconds and waits for a line."""
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils import logging

    from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer
    from jest_hf.data import build_processor, load_scenes
    from jest_hf.models import build_siglip

    class Blocks(TrainerCallback):
        start = 0.0

        def hold(self) -> None:
            sys.stdin.readline()
            self.start = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % block == 0:
                print(json.dumps({"seconds": time.process_time() - self.start}), flush=True)
                self.hold()

    logging.set_verbosity_error()
    rows = load_scenes("web").select(range(2048))
    processor = build_processor(rows["caption"], image_size=32)
    sizes = {"image_size": 32, "patch_size": 8}
    with tempfile.TemporaryDirectory() as folder:
        trainer = JESTTrainer(
            model=build_siglip("micro", processor.tokenizer, seed=0, **sizes),
            ref_model=build_siglip("micro", processor.tokenizer, seed=1, **sizes),
            args=JESTConfig(
                output_dir=folder,
                per_device_train_batch_size=64,
                max_steps=steps,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_steps=10,
                disable_tqdm=True,
                **ARMS[arm],
            ),
            data_collator=JESTDataCollator(processor),
            train_dataset=rows,
            processing_class=processor,
        )
        trainer.remove_callback(PrinterCallback)
        blocks = Blocks()
        trainer.add_callback(blocks)
        blocks.hold()
        trainer.train()


class Worker:
    """A process that trains with the package of one tree."""

    def __init__(self, tree: Path, arm: str, steps: int, block: int) -> None:
        command = [sys.executable, __file__, "--worker", arm, "--steps", str(steps), "--block", str(block)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,
        )

    def take_turn(self) -> float:
        """Seconds of CPU time of one block."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return float(json.loads(line)["seconds"])
        raise RuntimeError("a worker ended early; see its error above.")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(base: Path, arm: str, rounds: int, block: int) -> dict[str, Any]:
    """Ratios of this tree's CPU seconds to the base's, one a round; the first round is left out."""
    workers = {name: Worker(tree, arm, (rounds + 2) * block, block) for name, tree in (("base", base), ("new", ROOT))}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for number in range(rounds + 1):
            for name in sorted(workers, reverse=bool(number % 2)):
                seconds[name].append(workers[name].take_turn())
    finally:
        for worker in workers.values():
            worker.end()
    ratios = np.array(seconds["new"][1:]) / np.array(seconds["base"][1:])
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    step = {name: float(np.median(values[1:])) / block for name, values in seconds.items()}
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high), "seconds_a_step": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="commit to compare with")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="what is trained")
    parser.add_argument("--rounds", type=int, default=24, help="blocks of each process")
    parser.add_argument("--block", type=int, default=10, help="steps of a block")
    parser.add_argument("--quick", action="store_true", help="two rounds of two steps")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--worker", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        train_in_blocks(options.worker, options.steps, options.block)
        return
    if options.base is None:
        parser.error("--base: name the commit to compare with")
    rounds, block = (2, 2) if options.quick else (options.rounds, options.block)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), options.base], check=True, cwd=ROOT)
        try:
            found = {arm: compare(tree, arm, rounds, block) for arm in options.arms}
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=True, cwd=ROOT)
    print(f"{'arm':<26} {'CPU time, this tree / base':>28} {'95 % interval':>18}")
    for arm, one in found.items():
        print(f"{arm:<26} {one['ratio']:>28.3f} {one['low']:>9.3f} to {one['high']:.3f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    results = {"base": options.base, "rounds": rounds, "block": block, "arms": found}
    options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
