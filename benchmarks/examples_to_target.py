# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How many examples, and how much compute, a run needs to reach what another reaches.

One reference is trained on the curated part. Then, for each seed (of the pool's noise, the learner's weights, the
order of the data and the selection), every arm trains the same learner on the noisy pool. `--tune` tries learning
rates, with a seed of its own, and keeps for each arm the best on the validation part; the table is measured on the
test part with those. Data: the built-in scenes, or the real sets of `datasets_shared.py`.

    python benchmarks/examples_to_target.py --data cross_style --tune
    python benchmarks/examples_to_target.py --data cross_style --seeds 0 1 2

All arms take the same number of steps, but for `iid_long`, whose steps cost as many FLOPs as all of the joint arm's:
the first compares at equal trained examples, the second at equal compute. Every run has a learning rate schedule of
its own length.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, SiglipModel, TrainerCallback
from transformers.utils import logging

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.data.processor import build_processor
from jest_hf.data.scenes import load_scenes
from jest_hf.models import build_siglip
from jest_hf.report import first_reaching, format_table, read_selections


sys.path.insert(0, str(Path(__file__).parent))
import datasets_shared  # noqa: E402


RESULTS = Path(__file__).parent / "results"
# Settings of an arm, and the arm whose learning rate it takes: what is tuned is IID training and joint selection.
ARMS: dict[str, tuple[dict[str, Any], str]] = {
    "iid": ({"selection": "uniform"}, "iid"),
    "iid_long": ({"selection": "uniform"}, "iid"),
    "joint": ({"selection": "joint"}, "joint"),
    "independent": ({"selection": "independent"}, "joint"),
}
DATA = {
    "scenes": lambda seed: {
        "curated": load_scenes("curated"),
        "pool": load_scenes("web"),
        "validation": load_scenes("validation"),
        "test": load_scenes("test"),
    },
    "cross_style": datasets_shared.cross_style,
    "cifar10": datasets_shared.cifar10,
}
# What depends on the data: the metric, and how long runs have to be for it to move. Steps of iid_long are those that
# the FLOPs of the joint arm pay for: 8/3 of its steps, the reference's pass over the pool, and the selection.
SETTINGS: dict[str, dict[str, Any]] = {
    "scenes": {"metric": "R@5", "max_length": 20, "reference_steps": 300, "steps": 200, "iid_steps": 570},
    "cross_style": {
        "metric": "R@5",
        "max_length": 10,
        "reference_steps": 600,
        "steps": 150,
        "iid_steps": 435,
        "tune_steps": 150,
    },
    "cifar10": {
        "metric": "image_to_text_R@1",
        "max_length": 8,
        "reference_steps": 300,
        "steps": 100,
        "iid_steps": 330,
        "eval_steps": 50,
    },
}


class Quality(TrainerCallback):
    """Keeps the step and the recalls of every evaluation."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        recalls = {name.removeprefix("eval_"): value for name, value in metrics.items() if "R@" in name}
        self.points.append({"step": state.global_step, **recalls})


def train(options: argparse.Namespace, model: Any, parts: dict[str, Any], eval_part: str, **settings: Any) -> dict:
    """Train `model` in place on `parts["train"]`; return the points of its evaluations and what the run cost."""
    reference = settings.pop("reference", None)
    quality = Quality()
    with tempfile.TemporaryDirectory() as folder:
        args = JESTConfig(
            output_dir=folder,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            filter_ratio=options.filter_ratio,
            lr_scheduler_type=options.schedule,
            warmup_steps=options.warmup_steps,
            weight_decay=1e-4,
            eval_strategy="steps",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            cache_reference=reference is not None,
            record_selection=True,
            eval_group_column="group",
            **settings,
        )
        trainer = JESTTrainer(
            model=model,
            ref_model=reference,
            args=args,
            train_dataset=parts["train"],
            eval_dataset=parts[eval_part],
            processing_class=parts["processor"],
            callbacks=[quality],
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        if not quality.points or quality.points[-1]["step"] != args.max_steps:
            trainer.evaluate()
        ids = read_selections(Path(folder) / "selections.parquet")["example_id"].to_numpy()
        noise = parts["train"]["noise"][:] if reference is not None else []
        kinds = Counter(noise[i] for i in ids.tolist()) if noise else Counter()
    return {
        "points": quality.points,
        "flops_per_step": trainer.step_flops.total,
        "flops_before": trainer.cache_flops,
        "clean_share": kinds["aligned"] / sum(kinds.values()) if kinds else None,
        "seconds": round(seconds, 1),
        **{name: settings[name] for name in ("learning_rate", "max_steps")},
    }


def prepare(options: argparse.Namespace, seed: int) -> tuple[dict[str, Any], SiglipModel, SiglipModel]:
    """Data and fresh learner of this seed, and the reference, which is trained once."""
    parts = DATA[options.data](seed)
    folder = Path(options.reference_dir or tempfile.gettempdir()) / f"jest_hf_reference_{options.data}"
    if not folder.exists():
        processor = build_processor(_texts(parts["curated"]), image_size=32, max_length=options.max_length)
        processor.save_pretrained(folder)
        reference = _fresh(options, processor, seed=1000)
        parts |= {"processor": processor, "train": parts["curated"]}
        run = train(
            options,
            reference,
            parts,
            "validation",
            selection="uniform",
            max_steps=options.reference_steps,
            eval_steps=100,
            learning_rate=options.reference_learning_rate,
            seed=1000,
        )
        reference.save_pretrained(folder)
        write(options, "reference", run)
        print(f"reference: {run['points'][-1]} on validation, {run['seconds']:.0f} s", flush=True)
    processor = AutoProcessor.from_pretrained(folder)
    parts |= {"processor": processor, "train": parts["pool"]}
    return parts, _fresh(options, processor, seed), SiglipModel.from_pretrained(folder)


def _fresh(options: argparse.Namespace, processor: Any, seed: int) -> SiglipModel:
    return build_siglip(options.size, processor.tokenizer, image_size=32, patch_size=options.patch_size, seed=seed)


def tune(options: argparse.Namespace) -> None:
    """For each arm, the learning rate with the best validation metric after a shorter run."""
    seed = 100  # none of the seeds of the table
    parts, learner, reference = prepare(options, seed)
    tried: dict[str, dict[str, float]] = {"iid": {}, "joint": {}}
    for arm in tried:
        for rate in options.learning_rates:
            run = train(
                options,
                copy.deepcopy(learner),
                parts,
                "validation",
                **ARMS[arm][0],
                reference=reference if arm != "iid" else None,
                max_steps=options.tune_steps,
                eval_steps=options.tune_steps,
                learning_rate=rate,
                seed=seed,
            )
            tried[arm][str(rate)] = run["points"][-1][options.metric]
            print(f"{arm} learning rate {rate}: validation {options.metric} {tried[arm][str(rate)]:.4f}", flush=True)
    best = {arm: float(max(rates, key=rates.get)) for arm, rates in tried.items()}
    write(options, "tune", {"validation": tried, "best": best, "seed": seed})


def measure(options: argparse.Namespace) -> None:
    """Every arm and seed on the test part, with the tuned learning rates."""
    rates = json.loads(path_of(options, "tune").read_text())["best"]
    runs: dict[str, dict[str, Any]] = {}
    for seed in options.seeds:
        parts, learner, reference = prepare(options, seed)
        for arm in options.arms:
            runs[f"{arm}/{seed}"] = train(
                options,
                copy.deepcopy(learner),
                parts,
                "test",
                **ARMS[arm][0],
                reference=None if arm.startswith("iid") else reference,
                max_steps=options.iid_steps if arm == "iid_long" else options.steps,
                eval_steps=options.eval_steps,
                learning_rate=rates[ARMS[arm][1]],
                seed=seed,
            )
            last = runs[f"{arm}/{seed}"]["points"][-1]
            print(f"seed {seed} {arm}: {last}, {runs[f'{arm}/{seed}']['seconds']:.0f} s", flush=True)
        # Arms measured by an earlier call stay.
        earlier = path_of(options, f"seed{seed}")
        kept = json.loads(earlier.read_text())["runs"] if earlier.exists() else {}
        write(
            options,
            f"seed{seed}",
            {"runs": kept | {key: run for key, run in runs.items() if key.endswith(f"/{seed}")}},
        )


def report(options: argparse.Namespace) -> None:
    """The table over all seeds measured so far."""
    runs: dict[str, Any] = {}
    for seed in options.seeds:
        runs.update(json.loads(path_of(options, f"seed{seed}").read_text())["runs"])
    rows = []
    for arm in options.arms:
        of_arm = [runs[f"{arm}/{seed}"] for seed in options.seeds]
        curves = [curve_of(run, options) for run in of_arm]
        baselines = [curve_of(runs[f"iid_long/{seed}"], options) for seed in options.seeds]
        shares = []
        for curve, baseline in zip(curves, baselines, strict=True):
            reached = first_reaching(curve, baseline[-1][3])
            shares.append(f"{reached.trained / baseline[-1][0]:.2f}" if reached else "never")
        rows.append(
            [
                arm,
                f"{curves[0][-1][0]:,}",
                f"{curves[0][-1][2] / 1e12:.1f}",
                spread([run["points"][-1][options.metric] for run in of_arm]),
                " ".join(shares),
                spread([run["clean_share"] for run in of_arm]) if of_arm[0]["clean_share"] is not None else "",
            ]
        )
    headers = ["arm", "trained examples", "TFLOPs", options.metric, "share of iid_long's examples to its final value",
               "aligned share of the trained"]  # fmt: skip
    print(format_table(headers, rows))


def spread(values: list[float]) -> str:
    """Mean and range over the seeds."""
    return f"{sum(values) / len(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def curve_of(run: dict[str, Any], options: argparse.Namespace) -> list[tuple[int, int, float, float]]:
    """(trained, seen, FLOPs, quality) of each evaluation."""
    b = options.batch_size
    seen = 1 if run["flops_before"] == 0 else 1 / (1 - options.filter_ratio)
    return [
        (
            p["step"] * b,
            round(p["step"] * b * seen),
            run["flops_before"] + p["step"] * run["flops_per_step"],
            p[options.metric],
        )
        for p in run["points"]
    ]


def _texts(dataset: Any) -> list[str]:
    return [text for value in dataset["caption"] for text in ([value] if isinstance(value, str) else value)]


def path_of(options: argparse.Namespace, what: str) -> Path:
    return RESULTS / f"examples_to_target_{options.data}_{what}.json"


def write(options: argparse.Namespace, what: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    settings = {name: value for name, value in vars(options).items() if isinstance(value, int | float | str | list)}
    path_of(options, what).write_text(json.dumps({"settings": settings, **machine, **result}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="scenes")
    parser.add_argument("--tune", action="store_true", help="choose learning rates on the validation part")
    parser.add_argument("--report", action="store_true", help="only print the table of the seeds measured before")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--patch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, help="text tokens")
    parser.add_argument("--metric", help="what counts, of the metrics of an evaluation")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--filter_ratio", type=float, default=0.8)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--iid_steps", type=int, help="of iid_long: what the joint arm's FLOPs pay for")
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--warmup_steps", type=int, default=60)
    parser.add_argument("--eval_steps", type=int, default=30)
    parser.add_argument("--tune_steps", type=int, default=100, help="as many as are measured, where affordable")
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3])
    parser.add_argument(
        "--reference_dir", help="where the reference is kept between calls; default: the temporary folder"
    )
    parser.add_argument("--reference_steps", type=int)
    parser.add_argument("--reference_learning_rate", type=float, default=1e-3)
    data = parser.parse_known_args()[0].data
    parser.set_defaults(**SETTINGS[data])
    options = parser.parse_args()
    logging.set_verbosity_error()
    if options.tune:
        tune(options)
    else:
        if not options.report:
            measure(options)
        report(options)


if __name__ == "__main__":
    main()
