# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Which examples to train on: every way of selecting them, on the same data, from the same fresh learner.

For each seed (of the pool's noise, the learner's weights, the order of the data and the draws) every arm trains for as
many steps on sub-batches of as many examples. An arm is `<selection>/<criterion>/<filter ratio>`, or one of the names
in `NAMED`; `@tiny` is a reference larger than the learner, which is "micro" as the reference otherwise is. `iid` is
uniform training, for so many steps more that it says what another arm's FLOPs (the learner's, the proxy's, the
reference's pass over the pool) would have bought; `iid_both` is that on the pool and the curated part, which the
reference has seen and the learner has not. The learning rate is constant after a warm-up, so that every run is the
beginning of a longer one.

    python benchmarks/methods.py --data scenes               # what was measured before stays
    python benchmarks/methods.py --data cross_style --seeds 0
    python benchmarks/methods.py --data scenes --report --steps 200  # only the table, as of an earlier step
    python benchmarks/methods.py --data scenes --report --plot docs/images/methods.png
    python benchmarks/methods.py --data scenes --tune        # the learning rates, on the validation part

The learning rate is the one of `--tune` with which IID training on the curated part ends best on the validation part,
and no arm has another. Evaluation is on the test part.
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
from datasets import concatenate_datasets  # noqa: E402
from transformers import SiglipModel, SiglipProcessor  # noqa: E402
from transformers.utils import logging  # noqa: E402

from jest_hf import JESTConfig, JESTTrainer  # noqa: E402
from jest_hf.data.processor import build_processor  # noqa: E402
from jest_hf.models import build_siglip  # noqa: E402
from jest_hf.report import QualityPoint, format_table, plot_quality, read_selections  # noqa: E402


sys.path.insert(0, str(Path(__file__).parent))
from examples_to_target import DATA, Quality, spread  # noqa: E402


RESULTS = Path(__file__).parent / "results"
NAMED: dict[str, dict[str, Any]] = {
    "iid": {"selection": "uniform"},
    "iid_both": {"selection": "uniform"},
    "active_siglip": {"preset": "active_siglip"},
    # Similarities differ by tenths, and exp() of them hardly: the same with a factor of ten on the scores.
    "active_siglip/gain": {"preset": "active_siglip", "selection_gain": 10.0},
    "aced/0.8": {"preset": "aced"},
    "online_reference/0.8": {"reference": "online"},
    "two_stage": {"preset": "two_stage"},
}
ARMS = [
    "iid",
    "iid_both",
    *(f"{how}/learnability/{ratio}" for ratio in (0.8, 0.5, 0.9) for how in ("joint", "independent")),
    *(f"{how}/{what}/0.8" for what in ("easy_reference", "hard_learner") for how in ("joint", "independent")),
    *(f"joint/{what}/0.8@tiny" for what in ("learnability", "easy_reference")),  # H-ACID and I-ACID
    "active_siglip",
    "active_siglip/gain",
    "aced/0.8",
    "aced/0.8@tiny",
    "online_reference/0.8",
]
DRAWN = {"IID": "iid", "JEST": "joint/learnability/0.8", "JEST by easy_reference": "joint/easy_reference/0.8"}
# By data: text tokens, steps, the rate that `--tune` gave.
SETTINGS: dict[str, dict[str, Any]] = {
    "scenes": {"max_length": 20, "steps": 400, "learning_rate": 1e-3},
    "cross_style": {"max_length": 10, "steps": 600, "learning_rate": 2e-3},
}
RATES = (1e-3, 2e-3, 4e-3)


def settings_of(arm: str) -> tuple[dict[str, Any], str | None]:
    """What an arm changes in the settings, and the size of its reference."""
    name, _, size = arm.partition("@")
    if name in NAMED:
        settings = NAMED[name]
    else:
        selection, criterion, ratio = name.split("/")
        settings = {"selection": selection, "criterion": criterion, "filter_ratio": float(ratio)}
    needs_none = settings.get("selection") == "uniform" or settings.get("criterion") == "hard_learner"
    return settings, None if needs_none or settings.get("reference") == "online" else size or "micro"


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
            learning_rate=options.learning_rate,
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


def tune(options: argparse.Namespace) -> None:
    """Learning rates, by IID training on the curated part, on the validation part."""
    parts, runs = parts_of(options, seed=0), {}
    for rate in RATES:
        options.learning_rate = rate
        learner = fresh(options, parts["processor"], "micro", seed=1000)
        runs[str(rate)] = run = train(options, learner, curated(parts), 1000, options.steps, selection="uniform")
        print(f"{rate}: R@5 {run['points'][-1]['R@5']:.4f} on validation", flush=True)
    write(options, "tune", runs)


def parts_of(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The parts of the data, and a processor for them."""
    parts = DATA[options.data](seed)
    texts = [text for value in parts["curated"]["caption"] for text in ([value] if isinstance(value, str) else value)]
    processor = build_processor(texts, image_size=32, max_length=options.max_length)
    return parts | {"train": parts["pool"], "processor": processor}


def curated(parts: dict[str, Any]) -> dict[str, Any]:
    """The curated part to train on and the validation part to evaluate on, as for a reference."""
    return parts | {"train": parts["curated"], "test": parts["validation"]}


def reference_of(options: argparse.Namespace, parts: dict[str, Any], size: str) -> SiglipModel:
    """The reference of a size: trained once on the curated part, for all seeds and arms."""
    folder = options.work / f"{options.data}_{size}"
    if not (folder / "model.safetensors").exists():
        reference = fresh(options, parts["processor"], size, seed=1000)
        run = train(options, reference, curated(parts), 1000, options.steps, selection="uniform")
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
        parts = parts_of(options, seed)
        for arm in options.arms:
            runs = read(options, f"seed{seed}")
            if arm in runs:
                continue
            settings, size = settings_of(arm)
            reference = None if size is None else reference_of(options, parts, size)
            learner = fresh(options, parts["processor"], "micro", seed)
            steps = options.steps * (options.iid_times if arm == "iid" else 1)
            rows = concatenate_datasets([parts["pool"], parts["curated"]]) if arm == "iid_both" else parts["pool"]
            runs[arm] = run = train(
                options, learner, parts | {"train": rows}, seed, steps, **settings, ref_model=reference
            )
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


def plot(options: argparse.Namespace) -> None:
    """Test R@5 of some arms against trained examples and FLOPs, means over the seeds that were measured."""
    curves = {}
    for name, arm in DRAWN.items():
        runs = [seed[arm] for seed in (read(options, f"seed{number}") for number in options.seeds) if arm in seed]
        for points in zip(*(run["points"] for run in runs), strict=True):
            step, trained = points[0]["step"], points[0]["step"] * options.batch_size
            quality = float(np.mean([point["R@5"] for point in points]))
            curves.setdefault(name, []).append(QualityPoint(trained, trained, flops_of(runs[0], step), quality))
    plot_quality(curves, options.plot, f"test R@5 ({options.data}, {len(options.seeds)} seeds)")


def read(options: argparse.Namespace, what: str) -> dict[str, Any]:
    path = options.results / f"methods_{options.data}_{what}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else {}


def write(options: argparse.Namespace, what: str, runs: dict[str, Any]) -> None:
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    settings = {name: getattr(options, name) for name in ("data", "batch_size", "steps", "learning_rate")}
    path = options.results / f"methods_{options.data}_{what}.json"
    path.write_text(json.dumps({**about, "settings": settings, "runs": runs}, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=SETTINGS, default="scenes")
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, help="of the learner, and of the reference; default: by the data")
    parser.add_argument("--iid_times", type=int, default=5, help="so many times the steps for the iid arm")
    parser.add_argument("--eval_steps", type=int, default=50)
    parser.add_argument("--tune", action="store_true", help="try learning rates, and nothing else")
    parser.add_argument("--plot", type=Path, help="an image of some arms' curves")
    parser.add_argument("--report", action="store_true", help="only print the table of what was measured before")
    parser.add_argument("--work", type=Path, help="where references are kept; default: in the temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    options.steps = options.steps or SETTINGS[options.data]["steps"]
    options.learning_rate = SETTINGS[options.data]["learning_rate"]
    options.max_length = SETTINGS[options.data]["max_length"]
    options.work = options.work or Path(tempfile.gettempdir()) / "jest_hf_methods"
    logging.set_verbosity_error()
    if options.tune:
        tune(options)
        return
    if not options.report:
        measure(options)
    report(options)
    if options.plot:
        plot(options)


if __name__ == "__main__":
    main()
