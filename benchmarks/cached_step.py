# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a step of JEST costs when the reference's embeddings are cached, next to what the FLOP count says without one.

    python benchmarks/cached_step.py            # the tables, and benchmarks/results/cached_step.json
    python benchmarks/cached_step.py --quick    # a small model, to see that it runs

1. Cost. IID training, JEST with the live reference, and JEST with a cache in fp32 and in fp16 take their steps in
   turns, in an order that is turned every round. What is timed is `JESTTrainer.training_step` on a super-batch that is
   collated already, in CPU time of this process, to which it makes little difference what else runs on a shared
   machine. A ratio is between two steps of one round; the table has the medians.
2. Selections of real training runs with the live reference and with each cache, of a smaller model and larger batches:
   the same super-batches and the same noise. In fp32 they should be identical; in fp16 the overlap of the chosen
   examples is reported, over all steps (by when the learners may have seen other examples) and at the first one.
3. Memory. Each trainer is also built, and takes a step, in a process of its own, which tells the growth of its
   resident memory: the optimizer has no state.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any


# Waiting threads should sleep: spinning ones would count as CPU time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoModel, PrinterCallback  # noqa: E402
from transformers.utils import logging  # noqa: E402

from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer  # noqa: E402
from jest_hf.data import build_processor, load_scenes  # noqa: E402
from jest_hf.data.rows import Rows  # noqa: E402
from jest_hf.models import DualEncoder, build_siglip, expose_temperature  # noqa: E402
from jest_hf.reference import identify_reference, load_reference, write_cache  # noqa: E402
from jest_hf.report import format_table, read_selections  # noqa: E402


sys.path.insert(0, str(Path(__file__).parent))
from overhead import processor_name  # noqa: E402


RESULTS = Path(__file__).parent / "results" / "cached_step.json"
TOLERANCE = 0.10  # measured against predicted
ARMS = {
    "IID": {"selection": "uniform"},
    "JEST, live reference": {},
    "JEST, fp32 cache": {"reference_cache": "float32"},
    "JEST, fp16 cache": {"reference_cache": "float16"},
}


# Of the runs whose selections are compared.
SELECTING = {
    "size": "tiny",
    "image_size": 32,
    "patch_size": 8,
    "batch_size": 32,
    "scoring_batch_size": 32,
    "rows": 640,
}


class Workload:
    """Rows, a learner, a reference with its processor, and its two caches, in a folder."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        folder.mkdir(exist_ok=True)
        self.rows = load_scenes("web", n=options.rows)

    def prepare(self) -> None:
        """Fill the folder, once."""
        options = self.options
        processor = build_processor(self.rows["caption"], image_size=options.image_size, max_length=16)
        sizes = {"image_size": options.image_size, "patch_size": options.patch_size}
        for name, seed in (("learner", 0), ("reference", 1)):
            build_siglip(options.size, processor.tokenizer, **sizes, seed=seed).save_pretrained(self.folder / name)
            processor.save_pretrained(self.folder / name)
        model, processor = load_reference(str(self.folder / "reference"))
        identity = identify_reference(model)
        expose_temperature(model)
        for dtype in ("float32", "float16"):
            write_cache(
                self.folder / dtype,
                DualEncoder(model.config, processor),
                model,
                model.config,
                Rows(self.rows),
                JESTDataCollator(processor),
                reference=identity,
                batch_size=options.scoring_batch_size,
                dtype=dtype,
                disable_tqdm=True,
            )

    def trainer(self, name: str, **settings: Any) -> JESTTrainer:
        """The trainer of an arm."""
        options, settings = self.options, {**ARMS[name], **settings}
        uses_model = settings.get("selection") != "uniform" and "reference_cache" not in settings
        if "reference_cache" in settings:
            settings["reference_cache"] = str(self.folder / settings["reference_cache"])
        args = JESTConfig(
            output_dir=str(self.folder / name),
            per_device_train_batch_size=options.batch_size,
            filter_ratio=0.0 if settings.get("selection") == "uniform" else options.filter_ratio,
            n_chunks=min(16, options.batch_size),
            scoring_batch_size=options.scoring_batch_size,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **{"max_steps": 1, "learning_rate": 0.0, "optim": "sgd", **settings},
        )
        trainer = JESTTrainer(
            model=str(self.folder / "learner"),
            ref_model=str(self.folder / "reference") if uses_model else None,
            args=args,
            train_dataset=self.rows,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def super_batch(trainer: JESTTrainer) -> dict[str, Tensor]:
    """As many rows as a step of this trainer loads, collated."""
    rows = Rows(trainer.train_dataset, trainer.data_collator.image_column)
    return trainer.data_collator([rows[i] for i in range(trainer.args.super_batch_size)])


def measure_cost(workload: Workload, rounds: int) -> dict[str, dict[str, float]]:
    """CPU time of a step of each arm in steps of IID training, and what the FLOP count says."""
    trainers = {name: workload.trainer(name) for name in ARMS}
    batches = {name: super_batch(trainer) for name, trainer in trainers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for trainer in trainers.values():
        trainer.train()  # a step, in which every shape is met once
    order = list(trainers)
    for _ in range(rounds):
        for name in order:
            start = time.process_time()
            trainers[name].training_step(trainers[name].model, batches[name])
            seconds[name].append(time.process_time() - start)
            trainers[name].model.zero_grad()
        order.reverse()
    results = {}
    for name, values in seconds.items():
        ratios = np.array(values) / np.array(seconds["IID"])
        predicted = trainers[name].step_flops.relative_to_iid
        results[name] = {
            "seconds": float(np.median(values)),
            "ratio": float(np.median(ratios)),
            "low": float(ratios.min()),
            "high": float(ratios.max()),
            "predicted": predicted,
            "off": float(np.median(ratios)) / predicted - 1.0,
        }
    return results


def measure_selections(workload: Workload, steps: int) -> dict[str, dict[str, float]]:
    """How much of what is selected with the live reference is selected with each cache too."""
    chosen = {}
    for name in list(ARMS)[1:]:
        settings = {"max_steps": steps, "learning_rate": 1e-3, "optim": "adamw_torch", "record_selection": True}
        workload.trainer(name, **settings).train()
        chosen[name] = defaultdict(list)
        for row in read_selections(workload.folder / name / "selections.parquet").to_pylist():
            chosen[name][row["step"]].append(row["example_id"])
    live = chosen.pop("JEST, live reference")
    results = {}
    for name, other in chosen.items():
        overlaps = [len(set(live[step]) & set(other[step])) / len(live[step]) for step in sorted(live)]
        results[name] = {
            "identical_steps": sum(live[step] == other[step] for step in live) / len(live),
            "overlap": float(np.mean(overlaps)),
            "overlap_at_first": overlaps[0],
            "steps": len(live),
        }
    return results


def measure_memory(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Resident memory that each arm adds to its process, in MB, after a training step."""
    results = {}
    for name in ARMS:
        line = [sys.executable, __file__, "--only", name, "--folder", str(folder)]
        for option in ("size", "image_size", "patch_size", "batch_size", "scoring_batch_size", "rows", "threads"):
            line += [f"--{option}", str(getattr(options, option))]
        told = subprocess.run(line, check=True, capture_output=True, text=True).stdout
        results[name] = json.loads(told.splitlines()[-1])
    return results


def tell_memory(workload: Workload, name: str) -> dict[str, float]:
    """In a process of its own: what the trainer of an arm adds when it is built, and after a step."""
    AutoModel.from_pretrained(workload.folder / "learner")  # what is imported and allocated once
    before = resident_bytes()
    trainer = workload.trainer(name)
    built = resident_bytes()
    trainer.train()
    held = [trainer.model] if trainer.ref_model is None else [trainer.model, trainer.ref_model]
    weights = sum(weight.nbytes for model in held for weight in model.parameters())
    return {
        "built_mb": (built - before) / 1e6,
        "trained_mb": (resident_bytes() - before) / 1e6,
        "weights_mb": weights / 1e6,
    }


def resident_bytes() -> int:
    """With the pages of mapped files: weights are mapped when they are loaded, and so is a cache."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def tables(results: dict[str, Any]) -> str:
    cost = [
        [
            name,
            f"{one['seconds']:.2f}",
            f"{one['ratio']:.2f} ({one['low']:.2f}-{one['high']:.2f})",
            f"{one['predicted']:.2f}",
            f"{one['off']:+.1%}",
            *(f"{results['memory'][name][part]:.0f}" for part in ("weights_mb", "built_mb", "trained_mb")),
        ]
        for name, one in results["cost"].items()
    ]
    selections = [
        [name, f"{one['identical_steps']:.0%}", f"{one['overlap']:.2%}", f"{one['overlap_at_first']:.2%}"]
        for name, one in results["selections"].items()
    ]
    heads = ["step", "CPU s", "x IID", "predicted", "off", "weights MB", "built MB", "trained MB"]
    return "\n\n".join(
        [
            format_table(heads, cost),
            format_table(["selections", "identical steps", "overlap", "overlap at first"], selections),
        ]
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", help="of both models: tiny, small or base")
    parser.add_argument("--image_size", type=int, default=64, help="pixels a side")
    parser.add_argument("--patch_size", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=4, help="sub-batch b")
    parser.add_argument("--scoring_batch_size", type=int, default=4, help="examples scored in one forward")
    parser.add_argument("--filter_ratio", type=float, default=0.8)
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=4, help="timed steps of every arm")
    parser.add_argument("--steps", type=int, default=30, help="training steps whose selections are compared")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/cached_step.json; none with --quick")
    parser.add_argument("--only", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.quick:
        options.size, options.image_size, options.patch_size = "tiny", 32, 8
        options.rounds, options.steps = 2, 3
    elif options.output is None:
        options.output = RESULTS
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse_arguments(argv)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.only is not None:
        print(json.dumps(tell_memory(Workload(options, options.folder), options.only)))
        return
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(options, Path(folder))
        workload.prepare()
        results: dict[str, Any] = {"memory": measure_memory(options, Path(folder))}
        results["cost"] = measure_cost(workload, options.rounds)
        selecting = Workload(argparse.Namespace(**{**vars(options), **SELECTING}), Path(folder) / "selecting")
        selecting.prepare()
        results["selections"] = measure_selections(selecting, options.steps)
    print(tables(results))
    cached = [abs(one["off"]) for name, one in results["cost"].items() if "cache" in name]
    print(f"\nA cached step is at most {max(cached):.0%} from the prediction ({TOLERANCE:.0%} was the aim)")
    if options.output is not None:
        names = ("size", "image_size", "patch_size", "batch_size", "scoring_batch_size", "filter_ratio", "rows")
        setting = {name: getattr(options, name) for name in (*names, "rounds", "threads")}
        setting |= {
            "selecting": {**SELECTING, "steps": options.steps},
            "torch": torch.__version__,
            "machine": processor_name(),
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"setting": setting, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
