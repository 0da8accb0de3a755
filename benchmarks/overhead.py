# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What JESTTrainer costs beside a plain Trainer, and where the time of a JEST step goes.

    python benchmarks/overhead.py               # the tables, and benchmarks/results/overhead.json
    python benchmarks/overhead.py --quick       # a small model, to see that it runs

Trainers take their steps in turns, each in its own unmodified training loop: a callback holds a trainer back at the
end of its step until the others have taken theirs. A step is timed from one hold to the next, so it has everything in
it (loading and collating, the step, the optimizer, logging), and whatever else the machine does hits neighbouring
steps alike. What counts is the median of the ratios of neighbours, with a bootstrap interval.

1. `selection="uniform"` against `transformers.Trainer` with the same rows, order, collator, model and loss. Their
   final weights must be equal, or they did not do the same work.
2. Joint selection against `uniform`, and the shares of scoring, selection and the rest next to those that the FLOP
   model (`trainer.step_flops`) predicts. It knows the models only; the rest also loads and collates the super-batch.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


# Waiting threads should sleep: spinning ones starve each other, and the figures, wherever a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import PrinterCallback, Trainer, TrainerCallback  # noqa: E402
from transformers.utils import logging  # noqa: E402

from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer  # noqa: E402
from jest_hf.data import build_processor, load_scenes  # noqa: E402
from jest_hf.data.rows import EpochSampler, Rows  # noqa: E402
from jest_hf.losses import sigmoid_contrastive_loss  # noqa: E402
from jest_hf.models import DualEncoder, build_siglip  # noqa: E402
from jest_hf.report import format_table  # noqa: E402


RESULTS = Path(__file__).parent / "results" / "overhead.json"


class PlainTrainer(Trainer):
    """What one would write without jest_hf: normalise the pixels, run the model, take SigLIP's loss of its output."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *unused: Any, **kwargs: Any) -> Tensor:
        view = DualEncoder(self.model.config, self.data_collator.processor)
        output = model(**view.inputs(inputs))
        scale, bias = self.model.logit_scale.exp(), self.model.logit_bias
        return sigmoid_contrastive_loss(output.image_embeds, output.text_embeds, scale, bias)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return EpochSampler(len(self.train_dataset), seed=self.args.data_seed)


class Turns:
    """Lets one of several threads work at a time: once each in every round, in an order that is turned each round."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._left: list[str] = []
        self._changed = threading.Condition()
        self._next_round()

    def _next_round(self) -> None:
        self._names.reverse()
        self._left = list(self._names)

    def wait_for(self, name: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._left and self._left[0] == name)

    def end(self, name: str, leave: bool = False) -> None:
        with self._changed:
            if leave:
                self._names.remove(name)
            self._left.remove(name)
            if not self._left:
                self._next_round()
            self._changed.notify_all()


class TakeTurns(TrainerCallback):
    """Times the steps of one trainer, and holds it back after each until it is its turn again."""

    def __init__(self, turns: Turns, name: str) -> None:
        self.turns, self.name = turns, name
        self.seconds: list[float] = []
        self._start = 0.0

    def begin(self) -> None:
        self.turns.wait_for(self.name)
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        self.turns.end(self.name)
        self.begin()


def train_in_turns(trainers: dict[str, Trainer], threads: int, skip: int) -> dict[str, np.ndarray]:
    """Train all of them step by step; return the seconds of every step but the first `skip`."""
    turns = Turns(trainers)
    clocks = {name: TakeTurns(turns, name) for name in trainers}

    def run(name: str) -> None:
        torch.set_num_threads(threads)  # a new thread starts with a pool of its own
        trainers[name].remove_callback(PrinterCallback)
        trainers[name].add_callback(clocks[name])
        clocks[name].begin()
        try:
            trainers[name].train()
        finally:
            turns.end(name, leave=True)  # also after an error: the others must not wait forever

    with ThreadPoolExecutor(len(trainers)) as pool:
        list(pool.map(run, trainers))
    return {name: np.array(clock.seconds[skip:]) for name, clock in clocks.items()}


def ratio_of(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, float]:
    """Median of the paired ratios and the 95 % interval of that median, by bootstrap over the pairs."""
    ratios = numerator / denominator
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, size=(2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high), "pairs": len(ratios)}


class Workload:
    """Rows, processor and initial weights that every trainer here starts from."""

    def __init__(self, options: argparse.Namespace, folder: str) -> None:
        self.options, self.folder = options, folder
        self.rows = load_scenes("web", n=options.rows)
        self.processor = build_processor(self.rows["caption"], image_size=options.image_size, max_length=16)
        sizes = {"image_size": options.image_size, "patch_size": options.image_size // 4}
        self.learner = build_siglip(options.size, self.processor.tokenizer, **sizes, seed=0)
        self.reference = build_siglip(options.size, self.processor.tokenizer, **sizes, seed=1)

    def config(self, steps: int, **settings: Any) -> JESTConfig:
        return JESTConfig(
            output_dir=self.folder,
            max_steps=steps,
            per_device_train_batch_size=self.options.batch_size,
            filter_ratio=self.options.filter_ratio,
            learning_rate=1e-4,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **settings,
        )

    def plain(self, steps: int, **settings: Any) -> PlainTrainer:
        return PlainTrainer(
            model=copy.deepcopy(self.learner),
            args=self.config(steps, **settings),
            train_dataset=Rows(self.rows),
            data_collator=JESTDataCollator(self.processor),
        )

    def jest(self, steps: int, selection: str, **settings: Any) -> JESTTrainer:
        return JESTTrainer(
            model=copy.deepcopy(self.learner),
            ref_model=None if selection == "uniform" else copy.deepcopy(self.reference),
            args=self.config(steps, selection=selection, **settings),
            train_dataset=self.rows,
            processing_class=self.processor,
        )


def measure_uniform(workload: Workload, options: argparse.Namespace) -> dict[str, float]:
    """Step time of `selection="uniform"` relative to the plain Trainer's."""
    steps, settings = options.pairs + options.skip, {"logging_steps": 10}
    trainers = {"plain": workload.plain(steps, **settings), "uniform": workload.jest(steps, "uniform", **settings)}
    seconds = train_in_turns(trainers, options.threads, options.skip)
    weights = [list(trainer.model.parameters()) for trainer in trainers.values()]
    if not all(torch.equal(a, b) for a, b in zip(*weights, strict=True)):
        raise RuntimeError("The two trainers ended with different weights: they did not do the same work.")
    medians = {f"{name}_s": float(np.median(values)) for name, values in seconds.items()}
    return {**medians, **ratio_of(seconds["uniform"], seconds["plain"])}


def measure_joint(workload: Workload, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Step time of joint selection relative to `uniform`, and its parts, measured and predicted."""
    steps = options.joint_steps + options.skip
    trainers = {
        "uniform": workload.jest(steps, "uniform"),
        "joint": workload.jest(steps, "joint", logging_steps=1),
        "joint, cached reference": workload.jest(steps, "joint", cache_reference=True, logging_steps=1),
    }
    seconds = train_in_turns(trainers, options.threads, options.skip)
    iid = seconds.pop("uniform")
    results = {}
    for name, step_seconds in seconds.items():
        logs = [entry for entry in trainers[name].state.log_history if "scoring_seconds" in entry][options.skip :]
        shares = {
            part: float(np.median([entry[f"{part}_seconds"] for entry in logs] / step_seconds))
            for part in ("scoring", "selection")
        }
        flops = trainers[name].step_flops
        results[name] = {
            "step_s": float(np.median(step_seconds)),
            "measured": {
                **shares,
                "rest": 1.0 - sum(shares.values()),
                "relative_to_uniform": ratio_of(step_seconds, iid),
            },
            "predicted": {
                "scoring": (flops.scoring + flops.reference) / flops.total,
                "selection": flops.selection / flops.total,
                "rest": flops.training / flops.total,
                "relative_to_uniform": flops.relative_to_iid,
            },
        }
    return results


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", help="model: tiny, small or base")
    parser.add_argument("--image_size", type=int, default=64, help="pixels a side; 4 x 4 patches")
    parser.add_argument("--batch_size", type=int, default=16, help="sub-batch b")
    parser.add_argument("--filter_ratio", type=float, default=0.8)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=40, help="timed steps of `uniform` and of the plain Trainer")
    parser.add_argument("--joint_steps", type=int, default=6, help="timed steps of joint selection")
    parser.add_argument("--skip", type=int, default=3, help="first steps that do not count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small model, to see that it runs; writes no results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.size, options.image_size, options.rows = "tiny", 32, 256
        options.pairs, options.joint_steps, options.skip = 6, 3, 1
    return options


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(options, folder)
        print(f"{options.size} SigLIP at {options.image_size} px, b = {options.batch_size}, {options.threads} threads")
        uniform = measure_uniform(workload, options)
        print(
            "plain Trainer {plain_s:.3f} s a step, selection='uniform' {uniform_s:.3f} s: "
            "ratio {ratio:.4f} [{low:.4f}, {high:.4f}] over {pairs} pairs\n".format(**uniform),
            flush=True,
        )
        joint = measure_joint(workload, options)

    table = []
    for name, result in joint.items():
        for kind in ("measured", "predicted"):
            parts = result[kind]
            relative = parts["relative_to_uniform"]
            relative = relative["ratio"] if kind == "measured" else relative
            seconds = f"{result['step_s']:.3f}" if kind == "measured" else ""
            shares = [f"{parts[part]:.1%}" for part in ("scoring", "selection", "rest")]
            table.append([name, kind, seconds, *shares, f"{relative:.2f}"])
    print(format_table(["run", "", "step s", "scoring", "selection", "rest", "x uniform"], table))

    if not options.quick:
        setting = {
            **{
                name: getattr(options, name)
                for name in ("size", "image_size", "batch_size", "filter_ratio", "threads")
            },
            "torch": torch.__version__,
            "cpu": processor_name(),
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(
            json.dumps({"setting": setting, "uniform": uniform, "joint": joint}, indent=2) + "\n"
        )
        print(f"\nWritten to {options.output}")


if __name__ == "__main__":
    main()
