# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Real data at equal FLOPs: what IID training reaches, and what selection reaches for the same compute.

IID training takes `--steps` steps, and every other arm as many as the same FLOPs pay for, with its scoring, its draws
and the reference's pass over the pool. Data, learner and names of arms are those of `methods.py`. The learning rate is
constant after a warm-up, so that every run is the beginning of a longer one. It is tuned for IID, for easy_reference
and for learnability, from the same candidates, with a seed of its own and half of the FLOPs, on the validation part;
the table is measured on the test part. There is one reference for all seeds and arms.

    python benchmarks/equal_flops.py --data cross_style    # and cifar10, scenes; what was measured before stays
    python benchmarks/equal_flops.py --data cross_style --report

Seconds are those of training, with the reference's pass over the pool and without evaluations.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any


# Waiting threads should sleep: spinning ones starve each other wherever a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
from transformers import PrinterCallback, SiglipModel  # noqa: E402
from transformers.utils import logging  # noqa: E402

from jest_hf import JESTConfig, JESTTrainer  # noqa: E402
from jest_hf.report import format_table, read_selections  # noqa: E402


ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "examples")]
from costs import History, shares_of  # noqa: E402
from methods import curated, fresh, parts_of, settings_of, spread  # noqa: E402


# By arm: the arm whose learning rate it takes.
ARMS = {
    "iid": "iid",
    "joint/easy_reference/0.8": "joint/easy_reference/0.8",
    "joint/easy_reference/0.5": "joint/easy_reference/0.8",
    "two_stage": "joint/learnability/0.8",
    "joint/learnability/0.8": "joint/learnability/0.8",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "cross_style": {"metric": "R@5", "max_length": 10, "reference_steps": 600, "reference_learning_rate": 2e-3},
    "cifar10": {
        "metric": "image_to_text_R@1",
        "max_length": 8,
        "reference_steps": 300,
        "reference_learning_rate": 1e-3,
    },
    "scenes": {"metric": "R@5", "max_length": 20, "reference_steps": 600, "reference_learning_rate": 1e-3},
}
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
TUNING_SEED = 100  # none of the seeds of the table


def train(
    options: argparse.Namespace,
    parts: dict[str, Any],
    seed: int,
    arm: str,
    rate: float,
    iid_steps: int,
    reference: SiglipModel | None = None,
) -> tuple[dict[str, Any], SiglipModel]:
    """Train a fresh learner on `parts["train"]` for as long as the FLOPs of `iid_steps` steps of IID training last."""
    with tempfile.TemporaryDirectory() as folder:
        history = History(lambda metrics: metrics[f"eval_{options.metric}"])

        def trainer_of(steps: int) -> JESTTrainer:
            args = JESTConfig(
                output_dir=folder,
                per_device_train_batch_size=options.batch_size,
                per_device_eval_batch_size=256,
                max_steps=steps,
                learning_rate=rate,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=60,
                weight_decay=1e-4,
                eval_strategy="steps",
                eval_steps=max(1, steps // options.evaluations),
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                record_selection=True,
                eval_group_column="group",
                seed=seed,
                **settings_of(arm)[0] | {"cache_reference": reference is not None},
            )
            return JESTTrainer(
                model=fresh(options, parts["processor"], "micro", seed),
                ref_model=reference,
                args=args,
                train_dataset=parts["train"],
                eval_dataset=parts["test"],
                processing_class=parts["processor"],
                callbacks=[history],
            )

        trainer = trainer_of(1)
        budget = iid_steps * trainer.step_flops.training - trainer.cache_flops
        steps = int(budget / trainer.step_flops.total)
        if steps < 1:
            raise ValueError(f"--steps={options.steps} does not pay for one step of {arm}: set a larger number.")
        trainer = trainer_of(steps)
        trainer.remove_callback(PrinterCallback)
        history.start(trainer)
        trainer.train()
        if history.costs[-1]["trained"] != trainer.statistics.trained:
            trainer.evaluate()
        ids = read_selections(Path(folder) / "selections.parquet")["example_id"].to_pylist()
    noise = parts["train"]["noise"][:]
    run = {
        "learning_rate": rate,
        "steps": steps,
        "flops_before": trainer.cache_flops,
        "flops_per_step": trainer.step_flops.total,
        "aligned_share": Counter(noise[i] for i in ids)["aligned"] / len(ids),
        "evaluations": history.costs,
    }
    return run, trainer.model


def reference_of(options: argparse.Namespace, parts: dict[str, Any]) -> SiglipModel:
    """The reference: trained once on the curated part, for all seeds and arms."""
    folder = options.work / options.data
    if not (folder / "model.safetensors").exists():
        rate, steps = options.reference_learning_rate, options.reference_steps
        run, reference = train(options, curated(parts), 1000, "iid", rate, steps)
        reference.save_pretrained(folder)
        write(options, {"reference": run})
        print(f"reference: {run['evaluations'][-1]} on validation", flush=True)
    return SiglipModel.from_pretrained(folder)


def tuned(options: argparse.Namespace) -> dict[str, float]:
    """By arm, the learning rate that is best on the validation part."""
    parts = None
    owners = {arm: options.tuned_as[arm] for arm in options.arms}
    for arm in sorted(set(owners.values())):
        for rate in options.rates:
            tried = read(options).get("tuning", {})
            if str(rate) in tried.get(arm, {}):
                continue
            parts = parts or parts_of(options, TUNING_SEED)
            reference = reference_of(options, parts)
            run, _ = options.train(
                *(options, parts | {"test": parts["validation"]}, TUNING_SEED, arm, rate, options.steps // 2),
                reference=None if arm == "iid" else reference,
            )
            write(options, {"tuning": tried | {arm: tried.get(arm, {}) | {str(rate): run}}})
            print(f"{arm} {rate}: {run['evaluations'][-1]['quality']:.4f} on validation", flush=True)
    runs = read(options)["tuning"]
    quality = {arm: {rate: run["evaluations"][-1]["quality"] for rate, run in runs[arm].items()} for arm in runs}
    return {arm: float(max(quality[own], key=quality[own].__getitem__)) for arm, own in owners.items()}


def measure(options: argparse.Namespace) -> None:
    """The arms that are not there yet; a run is written as it ends."""
    rates = tuned(options)
    for seed in options.seeds:
        parts = None
        for arm in options.arms:
            runs = read(options).get("runs", {})
            if f"{arm}/{seed}" in runs:
                continue
            parts = parts or parts_of(options, seed)
            reference = None if arm == "iid" else reference_of(options, parts)
            run, _ = options.train(options, parts, seed, arm, rates[arm], options.steps, reference)
            write(options, {"runs": runs | {f"{arm}/{seed}": run}})
            print(f"seed {seed} {arm}: {run['evaluations'][-1]}", flush=True)


def report(options: argparse.Namespace) -> None:
    """The table over the seeds that were measured."""
    known = read(options)
    end = known["reference"]["evaluations"][-1]
    before = {cost: end[cost] for cost in ("flops", "seconds", "cpu_seconds")}
    rows = []
    for arm in options.arms:
        seeds = [seed for seed in options.seeds if {f"iid/{seed}", f"{arm}/{seed}"} <= set(known["runs"])]
        if not seeds:
            continue
        runs = [known["runs"][f"{arm}/{seed}"] for seed in seeds]
        ends = [run["evaluations"][-1] for run in runs]
        shares = [
            shares_of(
                known["runs"][f"iid/{seed}"]["evaluations"], known["runs"][f"{arm}/{seed}"]["evaluations"], before
            )
            for seed in seeds
        ]
        rows.append(
            [
                arm,
                f"{runs[0]['learning_rate']:g}",
                f"{runs[0]['steps']:,}",
                spread([end["quality"] for end in ends]),
                *(
                    ", ".join("never" if one is None else f"{one[cost]:.2f}" for one in shares) if arm != "iid" else ""
                    for cost in ("flops", "seconds", "cpu_seconds", "flops_with_reference")
                ),
                f"{sum(run['aligned_share'] for run in runs) / len(runs):.2f}",
            ]
        )
    headers = ["arm", "rate", "steps", f"test {options.metric}", "share of FLOPs", "of wall time", "of CPU time",
               "of FLOPs, reference trained", "aligned share"]  # fmt: skip
    print(format_table(headers, rows))


def path_of(options: argparse.Namespace) -> Path:
    return options.results / f"equal_flops_{options.data}.json"


def read(options: argparse.Namespace) -> dict[str, Any]:
    return json.loads(path_of(options).read_text()) if path_of(options).exists() else {}


def write(options: argparse.Namespace, more: dict[str, Any]) -> None:
    names = ("data", "batch_size", "steps", "evaluations", "reference_steps", "reference_learning_rate")
    about = {
        "settings": {name: getattr(options, name) for name in names},
        **{"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()},
    }
    path_of(options).write_text(json.dumps(read(options) | about | more, indent=1) + "\n")


def main(
    argv: list[str] | None = None,
    tuned_as: dict[str, str] = ARMS,
    run: Callable[..., tuple[dict[str, Any], SiglipModel]] | None = None,
    about: str | None = __doc__,
) -> None:
    """Measure the arms of `tuned_as`, which has for each arm the one whose learning rate it takes, with `run` in place
    of [`train`]."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=SETTINGS, default="cross_style")
    parser.add_argument("--arms", nargs="+", choices=tuned_as, default=list(tuned_as))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=600, help="of IID training, whose FLOPs every arm may spend")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="learning rates that are tried")
    parser.add_argument("--evaluations", type=int, default=12, help="of each run")
    parser.add_argument("--report", action="store_true", help="only print the table of what was measured before")
    parser.add_argument("--work", type=Path, help="where references are kept; default: in the temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    vars(options).update(SETTINGS[options.data], tuned_as=tuned_as, train=run or train)
    options.work = options.work or Path(tempfile.gettempdir()) / "jest_hf_equal_flops"
    logging.set_verbosity_error()
    if not options.report:
        measure(options)
    report(options)


if __name__ == "__main__":
    main()
