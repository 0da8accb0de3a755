# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Which examples to train on: every way of selecting them, on the same data, from the same fresh learner.

For each seed (of the pool's noise, the learner's weights, the order of the data and the draws) every arm trains for as
many steps on sub-batches of as many examples. An arm is `<selection>/<criterion>/<filter ratio>`, or one of the names
in `NAMED`. `iid` is uniform training, and is evaluated often enough to say where it was when another arm's FLOPs (the
learner's, the proxy's, the reference's pass over the pool) were spent; it is trained for `--iid_steps`. The learning
rate is constant after a warm-up, so that every run is the beginning of a longer one.

    python benchmarks/methods.py --data scenes               # what was measured before stays
    python benchmarks/methods.py --data cross_style --seeds 0
    python benchmarks/methods.py --data scenes --study acid  # a small learner with references of two sizes
    python benchmarks/methods.py --data scenes --report      # only the table

The settings are those of the demonstration (chosen on the validation part), and no arm has others. Evaluation is on
the test part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any


# Waiting threads should sleep: spinning ones starve each other wherever a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import SiglipModel, SiglipProcessor  # noqa: E402
from transformers.utils import logging  # noqa: E402

from jest_hf import JESTConfig, JESTTrainer  # noqa: E402
from jest_hf.data.processor import build_processor  # noqa: E402
from jest_hf.models import build_siglip  # noqa: E402
from jest_hf.report import format_table, read_selections  # noqa: E402


sys.path.insert(0, str(Path(__file__).parent))
from examples_to_target import DATA, Quality, spread  # noqa: E402


RESULTS = Path(__file__).parent / "results"
NAMED: dict[str, dict[str, Any]] = {
    "iid": {"selection": "uniform"},
    "active_siglip": {"preset": "active_siglip"},
    # Similarities differ by tenths, and exp() of them hardly: the same with a factor of ten on the scores.
    "active_siglip/gain": {"preset": "active_siglip", "selection_gain": 10.0},
    "aced/0.8": {"preset": "aced"},
    "online_reference/0.8": {"reference": "online"},
}
STUDIES: dict[str, list[str]] = {
    "methods": [
        "iid",
        *(f"{how}/learnability/{ratio}" for ratio in (0.8, 0.5, 0.9) for how in ("joint", "independent")),
        *(f"{how}/{what}/0.8" for what in ("easy_reference", "hard_learner") for how in ("joint", "independent")),
        "active_siglip",
        "active_siglip/gain",
        "aced/0.8",
        "online_reference/0.8",
    ],
    # The learner is the smaller one; `@tiny` is a reference that is larger than it.
    "acid": [
        "iid",
        *(f"joint/{what}/0.8@{size}" for what in ("learnability", "easy_reference") for size in ("micro", "tiny")),
    ],
}
LEARNER = {"methods": "tiny", "acid": "micro"}
MAX_LENGTH = {"scenes": 20, "cross_style": 10}


def settings_of(arm: str) -> tuple[dict[str, Any], str | None]:
    """What an arm changes in the settings, and the size of its reference."""
    name, _, size = arm.partition("@")
    if name in NAMED:
        settings = NAMED[name]
    else:
        selection, criterion, ratio = name.split("/")
        settings = {"selection": selection, "criterion": criterion, "filter_ratio": float(ratio)}
    needs_none = settings.get("selection") == "uniform" or settings.get("criterion") == "hard_learner"
    return settings, None if needs_none or settings.get("reference") == "online" else size or "tiny"


def train(
    options: argparse.Namespace, model: SiglipModel, parts: dict[str, Any], seed: int, steps: int, **changes: Any
) -> dict[str, Any]:
    """Train `model` in place on `parts["train"]`: the points of its evaluations, and what it cost."""
    quality, reference = Quality(), changes.pop("ref_model", None)
    with tempfile.TemporaryDirectory() as folder:
        args = JESTConfig(
            output_dir=folder,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=256,
            max_steps=steps,
            learning_rate=1e-3,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=60,
            weight_decay=1e-4,
            eval_strategy="steps",
            eval_steps=options.eval_steps,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            cache_reference=reference is not None,
            record_selection=True,
            eval_group_column="group",
            seed=seed,
            **changes,
        )
        trainer = JESTTrainer(
            model=model,
            ref_model=reference,
            args=args,
            train_dataset=parts["train"],
            eval_dataset=parts["test"],
            processing_class=parts["processor"],
            callbacks=[quality],
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        if not quality.points or quality.points[-1]["step"] != steps:
            trainer.evaluate()
        ids = read_selections(Path(folder) / "selections.parquet")["example_id"].to_pylist()
    noise = parts["train"]["noise"][:] if "noise" in parts["train"].column_names else []
    kinds = Counter(noise[i] for i in ids) if noise else Counter()
    return {
        "points": quality.points,
        "trained": trainer.statistics.trained,
        "unique_share": trainer.statistics.unique_share,
        "flops_per_step": trainer.step_flops.total,
        "flops_before": trainer.cache_flops,
        "aligned_share": kinds["aligned"] / sum(kinds.values()) if kinds else None,
        "seconds": round(seconds, 1),
    }


def reference_of(options: argparse.Namespace, parts: dict[str, Any], size: str) -> SiglipModel:
    """The reference of a size: trained once on the curated part, for all seeds and arms."""
    folder = options.work / f"{options.data}_{size}"
    if not (folder / "model.safetensors").exists():
        reference = fresh(options, parts["processor"], size, seed=1000)
        run = train(options, reference, parts | {"train": parts["curated"], "test": parts["validation"]}, 1000,
                    options.reference_steps, selection="uniform")  # fmt: skip
        reference.save_pretrained(folder)
        print(f"reference {size}: {run['points'][-1]} on validation, {run['seconds']:.0f} s", flush=True)
        runs = read(options, "references")
        write(options, "references", runs | {size: run})
    return SiglipModel.from_pretrained(folder)


def fresh(options: argparse.Namespace, processor: SiglipProcessor, size: str, seed: int) -> SiglipModel:
    return build_siglip(size, processor.tokenizer, image_size=32, patch_size=8, seed=seed)


def measure(options: argparse.Namespace) -> None:
    """The arms that are not there yet; a run is written as it ends."""
    for seed in options.seeds:
        parts = DATA[options.data](seed)
        texts = [
            text for value in parts["curated"]["caption"] for text in ([value] if isinstance(value, str) else value)
        ]
        parts["processor"] = build_processor(texts, image_size=32, max_length=MAX_LENGTH[options.data])
        parts["train"] = parts["pool"]
        for arm in options.arms:
            runs = read(options, f"seed{seed}")
            if arm in runs:
                continue
            settings, size = settings_of(arm)
            reference = None if size is None else reference_of(options, parts, size)
            learner = fresh(options, parts["processor"], LEARNER[options.study], seed)
            steps = options.iid_steps if arm == "iid" else options.steps
            runs[arm] = run = train(options, learner, parts, seed, steps, **settings, ref_model=reference)
            write(options, f"seed{seed}", runs)
            print(f"seed {seed} {arm}: R@5 {run['points'][-1]['R@5']:.4f}, {run['seconds']:.0f} s", flush=True)


def flops_of(run: dict[str, Any], step: int) -> float:
    return run["flops_before"] + step * run["flops_per_step"]


def at_flops(run: dict[str, Any], flops: float) -> float:
    """R@5 of a run when so many FLOPs were spent, linear between evaluations; 0 before the first."""
    points = [(0.0, 0.0)] + [(flops_of(run, point["step"]), point["R@5"]) for point in run["points"]]
    return float(np.interp(flops, *zip(*points, strict=True)))


def report(options: argparse.Namespace) -> None:
    """The table over the seeds that were measured."""
    seeds = {seed: read(options, f"seed{seed}") for seed in options.seeds}
    rows = []
    for arm in options.arms:
        measured = [runs for runs in seeds.values() if arm in runs and "iid" in runs]
        if not measured:
            continue
        ends = [next(point for point in runs[arm]["points"] if point["step"] == options.steps) for runs in measured]
        flops = [flops_of(runs[arm], options.steps) for runs in measured]
        shares = [runs[arm]["aligned_share"] for runs in measured]
        rows.append(
            [
                arm,
                len(measured),
                f"{flops[0] / flops_of(measured[0]['iid'], options.steps):.2f}",
                spread([point["R@5"] for point in ends]),
                "" if arm == "iid" else spread(
                    [at_flops(runs["iid"], spent) for runs, spent in zip(measured, flops, strict=True)]
                ),
                f"{sum(shares) / len(shares):.2f}" if None not in shares else "",
            ]
        )  # fmt: skip
    headers = ["arm", "seeds", "FLOPs / IID", "test R@5", "IID's R@5 at these FLOPs", "aligned share"]
    print(format_table(headers, rows))


def read(options: argparse.Namespace, what: str) -> dict[str, Any]:
    path = options.results / f"{options.study}_{options.data}_{what}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else {}


def write(options: argparse.Namespace, what: str, runs: dict[str, Any]) -> None:
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    settings = {name: getattr(options, name) for name in ("data", "study", "batch_size", "steps", "reference_steps")}
    path = options.results / f"{options.study}_{options.data}_{what}.json"
    path.write_text(json.dumps({**about, "settings": settings, "runs": runs}, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["scenes", "cross_style"], default="scenes")
    parser.add_argument("--study", choices=STUDIES, default="methods")
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--iid_steps", type=int, default=480)
    parser.add_argument("--eval_steps", type=int, default=40)
    parser.add_argument("--reference_steps", type=int, default=300)
    parser.add_argument("--report", action="store_true", help="only print the table of what was measured before")
    parser.add_argument("--work", type=Path, help="where references are kept; default: in the temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    options.arms = options.arms or STUDIES[options.study]
    options.work = options.work or Path(tempfile.gettempdir()) / "jest_hf_methods"
    logging.set_verbosity_error()
    if not options.report:
        measure(options)
    report(options)


if __name__ == "__main__":
    main()
