# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What Flexi-JEST costs in quality: the runs of jest.yaml with cheaper views of the images, at equal trained examples.

For each seed a reference is trained on the curated scenes, and then every arm trains the same learner for as many
steps on the noisy ones. An arm is a scoring view with the part of the sub-batch that is trained on at that view:
`patch:16/0.5` is Flexi-JEST, `patch:16/0` scores at a view at which the learner never trains. All are evaluated at
full resolution, and at the view too. IID and JEST are the runs of the recipe jest.yaml (`jest_seed*.json`: its
settings, seeds and reference; its IID run as it was after as many steps as JEST takes: the learning rate is constant).

    python benchmarks/flexi.py --work jest-out/flexi          # references are kept there, as seed0/reference and so on
    python benchmarks/flexi.py --arms image:16/0.5 --seeds 0  # what was measured before stays
    python benchmarks/flexi.py --patch_size 4                 # a learner with 64 image tokens instead of 16
    python benchmarks/flexi.py --steps 480 --arms JEST patch:16/0.5  # three times as long
    python benchmarks/flexi.py --report                       # only the table

What counts is the share of JEST's gain over IID in R@5 that an arm reaches, on the validation part, which is where the
recipe's IID run was evaluated on the way; and whether JEST is as good for the same FLOPs. Results are written
after every run, to one file a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


# Waiting threads should sleep: spinning ones starve each other wherever a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import SiglipModel  # noqa: E402
from transformers.utils import logging  # noqa: E402

from jest_hf.report import format_table, read_selections  # noqa: E402


ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
RECIPE = ROOT / "examples" / "recipes" / "jest.yaml"
sys.path.insert(0, str(ROOT / "examples"))
import run_jest  # noqa: E402


# In this order, each for all seeds: the first are what the bar is about.
ARMS = ["patch:16/0.5", "patch:16/0", "patch:16/0.25", "patch:16/0.75", "image:16/0.5", "drop:0.5/0.5"]
# With another learner than the recipe's there are no runs to compare with: they are made here.
OTHER_ARMS = ["JEST", "IID", "patch:8/0.5", "patch:8/0"]
# Small enough for seconds, to see that it runs.
QUICK = ["--max_train_rows", "64", "--max_steps", "2", "--reference_steps", "2", "--per_device_train_batch_size", "8"]


def settings_of(arm: str) -> dict[str, Any]:
    """What an arm changes in the recipe's settings."""
    if arm == "IID":
        return {"selection": "uniform"}
    if arm == "JEST":
        return {}
    view, fraction = arm.split("/")
    return {"scoring_view": view, "low_resolution_fraction": float(fraction), "eval_at_view": True}


def job_of(seed: int, folder: Path, quick: bool, changes: Sequence[str] = ()) -> run_jest.Job:
    """Data, processor and settings of the recipe, but for these changes."""
    words = ["--config", str(RECIPE), "--seed", str(seed), "--output_dir", str(folder)]
    words += ["--save_strategy", "no", "--logging_strategy", "no", "--disable_tqdm", "True", "--use_cpu", "True"]
    script, args = run_jest.parse([*words, *(QUICK if quick else []), *changes])
    args.eval_steps = min(args.max_steps, 160)
    return run_jest.Job(script, args)


def reference_of(job: run_jest.Job) -> SiglipModel:
    """The seed's reference, trained once and kept."""
    folder = Path(job.args.output_dir) / "reference"
    if not (folder / "model.safetensors").exists():
        job.reference()
    return SiglipModel.from_pretrained(folder)


def train(job: run_jest.Job, arm: str, reference: SiglipModel) -> dict[str, Any]:
    """One arm from the seed's fresh learner: its metrics on the test part, and what it cost."""
    out = Path(job.args.output_dir)  # the same for all arms: the reference's cache is there
    start = time.perf_counter()
    trainer = job.run(arm, job.train, reference, **settings_of(arm))
    seconds = time.perf_counter() - start
    metrics = trainer.evaluate(job.test, metric_key_prefix="test")
    noise = job.train["noise"][:]
    kinds = Counter(noise[i] for i in read_selections(out / "selections.parquet")["example_id"].to_pylist())
    return {
        "steps": job.args.max_steps,
        "batch_size": job.args.per_device_train_batch_size,
        "filter_ratio": job.args.filter_ratio,
        "trained": trainer.statistics.trained,
        "flops": trainer.run_flops.total,
        "step_relative_to_iid": trainer.step_flops.relative_to_iid,
        "aligned_share": kinds["aligned"] / sum(kinds.values()),
        "test": {name.removeprefix("test_"): value for name, value in metrics.items() if "R@" in name},
        "validation": [point._asdict() for point in trainer.history],
        "seconds": round(seconds, 1),
    }


def read(folder: Path, name: str, seed: int) -> dict[str, Any]:
    path = folder / f"{name}_seed{seed}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else {}


def measure(options: argparse.Namespace) -> None:
    """The arms that are not there yet, each for all seeds; a run is written as it ends."""
    for arm in options.arms:
        for seed in options.seeds:
            runs = read(options.results, options.name, seed)
            if arm in runs:
                continue
            folder = options.work / f"seed{seed}"
            reference = reference_of(job_of(seed, folder, options.quick))
            runs[arm] = run = train(job_of(seed, folder, options.quick, options.changes), arm, reference)
            about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "seed": seed}
            path = options.results / f"{options.name}_seed{seed}.json"
            path.write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")
            print(f"seed {seed} {arm}: test R@5 {run['test']['R@5']:.4f}, {run['seconds']:.0f} s", flush=True)


def summary_of(run: dict[str, Any], trained: int) -> dict[str, Any]:
    """R@5 and FLOPs after so many trained examples; the test part where it was looked at then."""
    point = next(point for point in run["validation"] if point["trained"] == trained)
    test = run["test"] if run["trained"] == trained else {}
    return {
        "quality": point["quality"],
        "flops": point["flops"],
        "test": test.get("R@5"),
        "at_view": test.get("at_view_R@5"),
        "aligned": run.get("aligned_share"),
    }


def quality_at(run: dict[str, Any], flops: float) -> float:
    """R@5 on validation when so many FLOPs were spent, linear between evaluations."""
    points = run["validation"]
    return float(np.interp(flops, [point["flops"] for point in points], [point["quality"] for point in points]))


def demonstration(seed: int) -> dict[str, Any]:
    """The recipe's two runs in the form of the runs made here."""
    runs = {}
    for name, run in read(RESULTS, "jest", seed).items():
        test = {key.removeprefix("test_"): value for key, value in run["test"].items()}
        runs[name] = {"trained": run["examples_trained"], "validation": run["evaluations"], "test": test}
    return runs


def table(seeds: dict[int, dict[str, Any]]) -> str:
    """A row for each arm over the seeds in which it was measured, compared with IID and JEST in the same seeds."""
    rows = []
    for arm in dict.fromkeys(arm for runs in seeds.values() for arm in runs):
        measured = [runs for runs in seeds.values() if arm in runs]
        trained = measured[0]["JEST"]["trained"]
        one, iid, jest = ([summary_of(runs[name], trained) for runs in measured] for name in (arm, "IID", "JEST"))
        quality, low, high = (mean([run["quality"] for run in several]) for several in (one, iid, jest))
        same_flops = [quality_at(runs["JEST"], run["flops"]) for runs, run in zip(measured, one, strict=True)]
        rows.append(
            [
                arm,
                len(measured),
                f"{one[0]['flops'] / iid[0]['flops']:.2f}",
                " ".join(f"{run['quality']:.3f}" for run in one),
                f"{(quality - low) / (high - low):.0%}",
                format_mean(same_flops),
                *(format_mean([run[name] for run in one]) for name in ("test", "at_view", "aligned")),
            ]
        )
    headers = ["arm", "seeds", "FLOPs / IID", "validation R@5", "share of the gain", "JEST at these FLOPs"]
    headers += ["test R@5", "test at the view", "aligned share"]
    return format_table(headers, rows)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def format_mean(values: list[float | None]) -> str:
    return "" if None in values else f"{mean(values):.3f}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", help="<view>/<fraction>, IID or JEST")
    parser.add_argument("--patch_size", type=int, default=8, help="of the learner; the recipe's is 8")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=160, help="of every arm; the recipe's JEST takes 160")
    parser.add_argument("--report", action="store_true", help="only print the table of what was measured before")
    parser.add_argument("--quick", action="store_true", help="a few rows and steps, to see that it runs")
    parser.add_argument("--work", type=Path, help="where references are kept; default: in the temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    options.work = options.work or Path(tempfile.gettempdir()) / "jest_hf_flexi"
    demonstrations = (options.patch_size, options.steps) == (8, 160)
    options.arms = options.arms or (ARMS if demonstrations else OTHER_ARMS)
    options.name = "flexi" if demonstrations else f"flexi_patch{options.patch_size}_steps{options.steps}"
    options.changes = ["--patch_size", str(options.patch_size), "--max_steps", str(options.steps)]
    logging.set_verbosity_error()
    if not options.report:
        measure(options)
    if not options.quick:
        seeds = {seed: read(options.results, options.name, seed) for seed in options.seeds}
        if options.patch_size == 8:
            seeds = {seed: demonstration(seed) | runs for seed, runs in seeds.items() if demonstrations or runs}
        print(table({seed: runs for seed, runs in seeds.items() if {"IID", "JEST"} <= runs.keys()}))


if __name__ == "__main__":
    main()
