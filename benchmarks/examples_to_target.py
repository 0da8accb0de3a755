# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How many examples, and how much compute, a run needs to reach what another reaches.

Per seed one reference is trained on the curated part; then every arm (a way to select) trains the same model from the same
weights on the noisy pool. `--tune` tries learning rates and keeps, for each arm, the best on the validation part; the table
is measured on the test part with those, once. Data: the built-in scenes, or the real sets of `datasets_shared.py`.

    python benchmarks/examples_to_target.py --data cross_style --tune
    python benchmarks/examples_to_target.py --data cross_style --seeds 0 1 2

Steps are counted so that the arms can be compared at equal trained examples (the common number of steps) and at equal FLOPs:
IID goes on for as many steps as the dearest arm could have paid for.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.data.processor import build_processor
from jest_hf.data.scenes import load_scenes
from jest_hf.models import build_siglip
from jest_hf.report import first_reaching, format_table, read_selections


sys.path.insert(0, str(Path(__file__).parent))
import datasets_shared  # noqa: E402


RESULTS = Path(__file__).parent / "results"
ARMS: dict[str, dict[str, Any]] = {
    "iid": {"selection": "uniform"},
    "joint": {"selection": "joint"},
    "independent": {"selection": "independent"},
}
DATA = {
    "scenes": lambda seed: {
        "curated": load_scenes("curated"),
        "pool": load_scenes("web"),
        "validation": load_scenes("validation"),
        "test": load_scenes("test"),
    },
    "cross_style": datasets_shared.cross_style,
    "demo_web": lambda seed: datasets_shared.demo_web(),
}


class Quality(TrainerCallback):
    """Keeps step, R@1 and R@5 of every evaluation."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        self.points.append({"step": state.global_step, "R@1": metrics["eval_R@1"], "R@5": metrics["eval_R@5"]})


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
            lr_scheduler_type="cosine",
            warmup_steps=20,
            weight_decay=1e-4,
            eval_strategy="steps",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            cache_reference=True,
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
        kinds = Counter(parts["train"]["noise"][i] for i in ids.tolist()) if reference is not None else Counter()
    flops = trainer.step_flops
    # The cache: one forward of the reference (as large as the learner here) for each row of the pool.
    cache = len(parts["train"]) * flops.training / 3 / options.batch_size if trainer.reference_cache is not None else 0
    return {
        "points": quality.points,
        "flops_per_step": flops.total,
        "flops_before": cache,
        "clean_share": kinds["aligned"] / sum(kinds.values()) if kinds else None,
        "seconds": round(seconds, 1),
        **{name: settings[name] for name in ("learning_rate", "max_steps")},
    }


def prepare(options: argparse.Namespace, seed: int) -> tuple[dict[str, Any], Any, Any]:
    """Data, a function that builds a fresh learner, and the reference of this seed."""
    parts = DATA[options.data](seed)
    captions = [caption for part in ("curated", "pool") for caption in _texts(parts[part])]
    parts["processor"] = build_processor(captions, image_size=32, max_length=options.max_length)
    tokenizer = parts["processor"].tokenizer

    def fresh(model_seed: int) -> Any:
        return build_siglip(
            options.size,
            image_size=32,
            patch_size=options.patch_size,
            vocab_size=len(tokenizer),
            max_length=options.max_length,
            pad_token_id=tokenizer.pad_token_id,
            seed=model_seed,
        )

    reference = fresh(1000 + seed)
    run = train(
        options,
        reference,
        {**parts, "train": parts["curated"]},
        "validation",
        selection="uniform",
        max_steps=options.reference_steps,
        eval_steps=options.reference_steps,
        learning_rate=options.reference_learning_rate,
        seed=seed,
    )
    print(f"seed {seed}: reference {run['points'][-1]} on validation, {run['seconds']:.0f} s", flush=True)
    parts["train"] = parts["pool"]
    return parts, fresh, reference


def tune(options: argparse.Namespace) -> None:
    """For each arm, the learning rate with the best validation R@5 after a shorter run."""
    seed = 100  # none of the seeds of the table
    parts, fresh, reference = prepare(options, seed)
    tried: dict[str, dict[str, float]] = {arm: {} for arm in options.arms}
    for arm in options.arms:
        for rate in options.learning_rates:
            run = train(
                options,
                fresh(seed),
                parts,
                "validation",
                **ARMS[arm],
                reference=reference if arm != "iid" else None,
                max_steps=options.tune_steps,
                eval_steps=options.tune_steps,
                learning_rate=rate,
                seed=seed,
            )
            tried[arm][str(rate)] = run["points"][-1]["R@5"]
            print(f"{arm} learning rate {rate}: validation R@5 {tried[arm][str(rate)]:.4f}", flush=True)
    best = {arm: float(max(rates, key=rates.get)) for arm, rates in tried.items()}
    write(options, "tune", {"validation R@5": tried, "best": best, "seed": seed})


def measure(options: argparse.Namespace) -> None:
    """Every arm and seed on the test part, with the tuned learning rates."""
    rates = json.loads(path_of(options, "tune").read_text())["best"]
    runs: dict[str, dict[str, Any]] = {}
    for seed in options.seeds:
        parts, fresh, reference = prepare(options, seed)
        for arm in options.arms:
            runs[f"{arm}/{seed}"] = train(
                options,
                fresh(seed),
                parts,
                "test",
                **ARMS[arm],
                reference=reference if arm != "iid" else None,
                max_steps=options.iid_steps if arm == "iid" else options.steps,
                eval_steps=options.eval_steps,
                learning_rate=rates[arm],
                seed=seed,
            )
            last = runs[f"{arm}/{seed}"]["points"][-1]
            print(f"seed {seed} {arm}: {last}, {runs[f'{arm}/{seed}']['seconds']:.0f} s", flush=True)
        write(options, f"seed{seed}", {"runs": {key: run for key, run in runs.items() if key.endswith(f"/{seed}")}})


def report(options: argparse.Namespace) -> None:
    """The table over all seeds measured so far."""
    runs: dict[str, Any] = {}
    for seed in options.seeds:
        runs.update(json.loads(path_of(options, f"seed{seed}").read_text())["runs"])
    rows = []
    for arm in options.arms:
        for seed in options.seeds:
            run, iid = runs[f"{arm}/{seed}"], runs[f"iid/{seed}"]
            curve, baseline = curve_of(run, options), curve_of(iid, options)
            at_equal_examples = [p for p in baseline if p[0] <= curve[-1][0]][-1]
            at_equal_flops = [p for p in curve if p[2] <= baseline[-1][2]]
            reached = first_reaching(curve, baseline[-1][3])
            rows.append(
                [
                    arm,
                    seed,
                    curve[-1][0],
                    f"{curve[-1][2] / 1e12:.1f}",
                    f"{run['points'][-1]['R@1']:.3f}",
                    f"{curve[-1][3]:.3f}",
                    f"{at_equal_examples[3]:.3f}",
                    f"{at_equal_flops[-1][3]:.3f}" if at_equal_flops else "-",
                    f"{reached.trained / baseline[-1][0]:.2f}" if reached else "never",
                    f"{run['clean_share']:.2f}" if run["clean_share"] is not None else "-",
                ]
            )
    headers = ["arm", "seed", "trained", "TFLOPs", "R@1", "R@5", "IID R@5 at equal examples", "R@5 at IID's FLOPs",
               "share of IID's examples to its final R@5", "clean share"]  # fmt: skip
    print(format_table(headers, rows))


def curve_of(run: dict[str, Any], options: argparse.Namespace) -> list[tuple[int, int, float, float]]:
    """(trained, seen, FLOPs, R@5) of each evaluation."""
    b = options.batch_size
    seen = 1 if run["flops_before"] == 0 else 1 / (1 - options.filter_ratio)
    return [
        (p["step"] * b, round(p["step"] * b * seen), run["flops_before"] + p["step"] * run["flops_per_step"], p["R@5"])
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
    parser.add_argument("--max_length", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--filter_ratio", type=float, default=0.8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--iid_steps", type=int, default=550, help="what the joint arm's FLOPs pay for")
    parser.add_argument("--eval_steps", type=int, default=25)
    parser.add_argument("--tune_steps", type=int, default=100)
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--reference_steps", type=int, default=400)
    parser.add_argument("--reference_learning_rate", type=float, default=1e-3)
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
