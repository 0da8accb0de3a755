# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Steps and FLOPs that RHO-LOSS, ClassAct and a small scorer need to be where uniform training ends, on noisy labels.

Data: `cifar10` (photographs, 40 % of the training labels wrong, by seed), `clothing` (photographs with the volunteers'
own labels, some of them "not sure"), `text` (which shape a caption is about; most captions of the built-in web data
are another picture's, or say nothing), and `language` (next words of those captions, 40 % of them scrambled).

A reference of each size is trained once, on a clean hold-out part that no arm trains on. For each seed (of the noise,
the weights, the order, the draws) every arm then trains the same fresh learner with the same settings, `uniform` for
longest. The learning rate is constant after a warm-up, so that every run is the beginning of a longer one. Settings
are chosen with `--split validation`; the figures are those of `--split test`.

    python benchmarks/classification.py --data cifar10                 # what was measured before stays
    python benchmarks/classification.py --data cifar10 --report        # only the table
    python benchmarks/classification.py --data text --split validation --seeds 100 --arms uniform rho_loss
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


# Waiting threads should sleep: spinning ones starve each other wherever a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback  # noqa: E402
from transformers.utils import logging  # noqa: E402

from jest_hf import JESTConfig, JESTTrainer  # noqa: E402
from jest_hf.report import format_table, read_selections  # noqa: E402


sys.path.insert(0, str(Path(__file__).parent))
import labelled_tasks as tasks  # noqa: E402
from examples_to_target import spread  # noqa: E402


RESULTS = Path(__file__).parent / "results"
SHOWN = 0.4  # the part of uniform's steps after which the table compares

# ClassAct's label smoothing, which would help by itself, is left out: all arms train with the same loss.
PROXY = {"preset": "class_act", "label_smoothing_factor": 0.0, "cache_reference": True}
INDEPENDENT = {"selection": "independent", "filter_ratio": 0.8, "cache_reference": True}
# Settings of an arm, the size of its reference and proxy, and its share of uniform's steps: an arm of which a step
# costs more is of no use beyond that.
ARMS: dict[str, tuple[dict[str, Any], str | None, float]] = {
    "uniform": ({"selection": "uniform"}, None, 1.0),
    # On the clean hold-out part too, which the references know and no other arm trains on.
    "uniform_both": ({"selection": "uniform"}, None, 1.0),
    "rho_loss": ({"preset": "rho_loss"}, "small", 0.4),
    "class_act": (PROXY, "small", 0.8),
    "class_act/gain": ({**PROXY, "selection_gain": 3.0}, "small", 0.8),
    "class_act/0.8": ({**PROXY, "filter_ratio": 0.8}, "small", 0.8),
    "class_act/top_k": ({**PROXY, "selection": "top_k"}, "small", 0.8),
    # Proxy and reference of ten times fewer FLOPs than the learner.
    "tiny_scorer/0.5": ({**PROXY, "filter_ratio": 0.5}, "tiny", 0.8),
    "tiny_scorer/0.8": ({**PROXY, "filter_ratio": 0.8}, "tiny", 0.8),
    "rho_loss/0.8": ({"preset": "rho_loss", "filter_ratio": 0.8}, "small", 0.5),
    "independent/0.8": (INDEPENDENT, "small", 0.5),
    "independent/gain": ({**INDEPENDENT, "selection_gain": 5.0}, "small", 0.5),
}
IMAGE_ARMS = ("uniform", "uniform_both", "rho_loss", "class_act", "tiny_scorer/0.5")


@dataclass(frozen=True)
class Study:
    """
    One data set with the settings of its runs.

    Args:
        parts (`Callable`): `parts(seed)`, the rows `train`, `holdout`, `validation` and `test`, `processor`, and
            `clean`, a list of whether each training row is what it says.
        build (`Callable`): `build(size, parts)`, a model of fresh weights: `learner`, `small` or `tiny`.
        metric (`str`): What is to be reached.
        sign (`int`): 1 where more of it is better, -1 where less is.
        objective (`str`, *optional*): For presets that name another one.
    """

    parts: Callable[[int], dict[str, Any]]
    build: Callable[[str, dict[str, Any]], PreTrainedModel]
    metric: str
    sign: int
    arms: tuple[str, ...]
    batch_size: int
    uniform_steps: int
    eval_steps: int
    reference_steps: int
    learning_rate: float
    objective: str = "classification"


STUDIES: dict[str, Study] = {
    "cifar10": Study(
        tasks.noisy_cifar10, tasks.resnet, "accuracy", 1, IMAGE_ARMS,
        batch_size=64, uniform_steps=600, eval_steps=40, reference_steps=600, learning_rate=1e-3,
    ),
    "clothing": Study(
        tasks.clothing, tasks.resnet, "accuracy", 1, IMAGE_ARMS,
        batch_size=32, uniform_steps=400, eval_steps=20, reference_steps=300, learning_rate=1e-3,
    ),
    "text": Study(
        tasks.web_captions, tasks.bert, "accuracy", 1, ("uniform", "independent/gain"),
        batch_size=64, uniform_steps=600, eval_steps=40, reference_steps=600, learning_rate=1e-3,
    ),
    "language": Study(
        tasks.scrambled_captions, tasks.llama, "loss", -1, ("uniform", "independent/gain"),
        batch_size=64, uniform_steps=400, eval_steps=20, reference_steps=300, learning_rate=1e-3,
        objective="language_model",
    ),
}  # fmt: skip


class Quality(TrainerCallback):
    """Keeps the step and the metric of every evaluation."""

    def __init__(self, metric: str) -> None:
        self.metric = f"eval_{metric}"
        self.points: list[tuple[int, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        self.points.append((state.global_step, round(metrics[self.metric], 4)))


def fresh(study: Study, size: str, parts: dict[str, Any], seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return study.build(size, parts)


def train(
    study: Study,
    model: PreTrainedModel,
    rows: Any,
    parts: dict[str, Any],
    *,
    split: str,
    seed: int,
    steps: int,
    clean: list[bool] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Train `model` in place on `rows`, `clean` or not: the points of its evaluations on a part, and what it cost."""
    quality, models = Quality(study.metric), {name: changes.pop(name, None) for name in ("ref_model", "proxy_model")}
    with tempfile.TemporaryDirectory() as folder:
        args = JESTConfig(
            output_dir=folder,
            per_device_train_batch_size=study.batch_size,
            per_device_eval_batch_size=250,
            scoring_batch_size=320,
            max_steps=steps,
            learning_rate=study.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=30,
            weight_decay=0.01,
            adam_beta2=0.999,
            eval_strategy="steps",
            eval_steps=study.eval_steps,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            record_selection=True,
            seed=seed,
            **{"objective": study.objective, **changes},
        )
        trainer = JESTTrainer(
            model=model,
            args=args,
            data_collator=parts["collator"],
            train_dataset=rows,
            eval_dataset=parts[split],
            processing_class=parts["processor"],
            callbacks=[quality],
            **models,
        )
        trainer.remove_callback(PrinterCallback)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        ids = read_selections(Path(folder) / "selections.parquet")["example_id"].to_pylist()
    flops = trainer.step_flops
    return {
        "points": quality.points,
        "flops_per_step": flops.total,
        "flops_before": trainer.cache_flops,
        "forward_flops": flops.training / (3 * study.batch_size),
        "trained": trainer.statistics.trained,
        "seen": trainer.statistics.seen,
        "clean_share": sum(clean[i] for i in ids) / len(ids) if clean else None,
        "cpu_seconds": round(seconds, 1),
    }


def reference_of(options: argparse.Namespace, size: str, parts: dict[str, Any]) -> PreTrainedModel:
    """The reference of a size: trained once on the hold-out part, for all seeds and arms."""
    study = STUDIES[options.data]
    path = options.work / f"{options.data}_{size}.pt"
    model = fresh(study, size, parts, seed=1000)
    if not path.exists():
        how = {"split": "validation", "seed": 1000, "steps": study.reference_steps, "selection": "uniform"}
        run = train(study, model, parts["holdout"], parts, **how)
        torch.save(model.state_dict(), path)
        results = read(options)
        results["references"][size] = run
        write(options, results)
        print(f"reference {size}: {run['points'][-1]}, {run['cpu_seconds']:.0f} s", flush=True)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def measure(options: argparse.Namespace) -> None:
    """The runs that are not there yet; each is written as it ends."""
    study = STUDIES[options.data]
    for seed in options.seeds:
        missing = [arm for arm in options.arms if arm not in read(options)["runs"].get(f"seed{seed}", {})]
        if not missing:
            continue
        parts = study.parts(seed)
        for arm in missing:
            changes, size, share = ARMS[arm]
            if size is not None:
                changes = {**changes, "ref_model": reference_of(options, size, parts)}
            steps = round(share * study.uniform_steps)
            learner = fresh(study, "learner", parts, seed)
            rows = parts["train"] + (parts["holdout"] if arm == "uniform_both" else [])
            clean = parts["clean"] + [True] * (len(rows) - len(parts["train"]))
            how = {"split": options.split, "seed": seed, "steps": steps, "clean": clean}
            run = train(study, learner, rows, parts, **how, **changes)
            results = read(options)
            results["runs"].setdefault(f"seed{seed}", {})[arm] = run
            write(options, results)
            print(f"seed {seed} {arm}: {run['points'][-1]}, {run['cpu_seconds']:.0f} s", flush=True)


def reaching(study: Study, run: dict[str, Any], target: float) -> int | None:
    """The first step at which a run was as good as the target, at an evaluation."""
    return next((step for step, value in run["points"] if study.sign * value >= study.sign * target), None)


def gain(study: Study, run: dict[str, Any], uniform: dict[str, Any], by_flops: bool) -> float:
    """
    How much better a run was than uniform training at equal steps, or at equal FLOPs: the mean over all evaluations of
    the run, linear between those of uniform, as far as that went. One evaluation wobbles by a point or two.
    """

    def curve(one: dict[str, Any]) -> tuple[list[float], list[float]]:
        cost = [one["flops_before"] + step * one["flops_per_step"] if by_flops else step for step, _ in one["points"]]
        return cost, [study.sign * value for _, value in one["points"]]

    (costs, values), (known_costs, known) = curve(run), curve(uniform)
    pairs = [(c, v) for c, v in zip(costs, values, strict=True) if c <= known_costs[-1]]
    return float(np.mean([value - np.interp(cost, known_costs, known) for cost, value in pairs]))


def report(options: argparse.Namespace) -> None:
    """The table over the seeds that were measured."""
    study, results = STUDIES[options.data], read(options)
    shown = round(SHOWN * study.uniform_steps)
    rows = []
    for arm in options.arms:
        seeds = [runs for _, runs in sorted(results["runs"].items()) if arm in runs and "uniform" in runs]
        if not seeds:
            continue
        steps, flops = [], []
        for runs in seeds:
            uniform, run = runs["uniform"], runs[arm]
            end, target = uniform["points"][-1]
            step = reaching(study, run, target)
            steps.append("never" if step is None else f"{step / end:.2f}")
            spent = None if step is None else run["flops_before"] + step * run["flops_per_step"]
            flops.append("never" if step is None else f"{spent / (end * uniform['flops_per_step']):.2f}")
        gains = [
            ", ".join(f"{gain(study, runs[arm], runs['uniform'], by_flops):+.3f}" for runs in seeds)
            for by_flops in (False, True)
        ]
        first = seeds[0]
        rows.append(
            [
                arm,
                len(seeds),
                f"{first[arm]['flops_per_step'] / first['uniform']['flops_per_step']:.2f}",
                spread([runs["uniform"]["points"][-1][1] for runs in seeds]) if arm == "uniform" else "",
                spread([dict(map(tuple, runs[arm]["points"]))[shown] for runs in seeds]),
                ", ".join(steps),
                ", ".join(flops),
                *gains,
                f"{sum(runs[arm]['clean_share'] for runs in seeds) / len(seeds):.2f}",
            ]
        )  # fmt: skip
    headers = ["arm", "seeds", "FLOPs of a step / uniform", f"{study.metric} at step {study.uniform_steps}"]
    headers += [f"{study.metric} at step {shown}", "share of uniform's steps", "of its FLOPs"]
    headers += ["mean gain at equal steps", "at equal FLOPs", "clean share"]
    print(format_table(headers, rows))
    uniform = next((runs["uniform"] for runs in results["runs"].values() if "uniform" in runs), None)
    for size, run in results["references"].items():
        cost = run["points"][-1][0] * run["flops_per_step"]
        share = f", {cost / (study.uniform_steps * uniform['flops_per_step']):.2f} of a uniform run" if uniform else ""
        print(
            f"reference {size}: {run['forward_flops'] / 1e6:.2f} MFLOPs a forward, {study.metric} "
            f"{run['points'][-1][1]:.3f} on validation, its training {cost:.1e} FLOPs{share}"
        )
    if uniform:
        print(f"learner: {uniform['forward_flops'] / 1e6:.2f} MFLOPs a forward")


def path_of(options: argparse.Namespace) -> Path:
    choosing = "" if options.split == "test" else f"_{options.split}"
    return options.results / f"classification_{options.data}{choosing}.json"


def read(options: argparse.Namespace) -> dict[str, Any]:
    path = path_of(options)
    return json.loads(path.read_text()) if path.exists() else {"references": {}, "runs": {}}


def write(options: argparse.Namespace, results: dict[str, Any]) -> None:
    study = STUDIES[options.data]
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    names = ("batch_size", "uniform_steps", "eval_steps", "reference_steps", "learning_rate", "metric")
    settings = {"split": options.split, **{name: getattr(study, name) for name in names}}
    results = {**about, "settings": settings, "references": results["references"], "runs": results["runs"]}
    path_of(options).write_text(json.dumps(results, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=STUDIES, default="cifar10")
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--report", action="store_true", help="only print the table of what was measured before")
    parser.add_argument("--work", type=Path, help="where references are kept; default: in the temporary folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    options.arms = options.arms or STUDIES[options.data].arms
    options.work = options.work or Path(tempfile.gettempdir()) / "jest_hf_classification"
    options.work.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    if not options.report:
        measure(options)
    report(options)


if __name__ == "__main__":
    main()
