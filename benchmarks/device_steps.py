# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Steps on a GPU, with their loader: mean and median seconds, FLOPs, and how often the host waits for the device.

    python benchmarks/device_steps.py --device cuda          # a table, and a JSON with the card's name
    python benchmarks/device_steps.py --device cpu --quick   # a tiny model, to see that it runs

The arms run one after the other, so that the loader of one arm has the cores for itself: a loader that cannot keep up
shows in the mean. Rows are JPEGs of 256 x 341 pixels. Host waits are counted in two further steps of each arm, by
torch's synchronisation warnings; they include those of the Trainer, which the uniform arm shows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.utils import logging


sys.path.insert(0, str(Path(__file__).parent))
from overhead import processor_name  # noqa: E402
from whole_step import ARMS, photographs  # noqa: E402

from jest_hf import JESTConfig, JESTTrainer  # noqa: E402
from jest_hf.data import build_processor  # noqa: E402
from jest_hf.models import build_siglip  # noqa: E402
from jest_hf.report import format_table  # noqa: E402


RESULTS = Path(__file__).parent / "results" / "device_steps.json"
COUNTED = 2  # steps in which host waits are counted


class Clock(TrainerCallback):
    """The time at the end of each step. The host is at most a step ahead of the device, so means are right."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


@contextmanager
def counted_waits(device: str) -> Iterator[list[int]]:
    """Count the operations after which the host waits for the device; the list gets their number at the end."""
    counts: list[int] = []
    if device != "cuda":
        yield counts
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode("default")
    counts.append(sum("synchroniz" in str(one.message) for one in caught))


def make_trainer(options: argparse.Namespace, name: str, rows: Any, folder: str, steps: int) -> JESTTrainer:
    """One arm, with a new learner; the arms share the cache of the reference."""
    processor = build_processor((row["text"] for row in rows[:200]), image_size=options.image_size, max_length=16)
    sizes = {"image_size": options.image_size, "patch_size": options.image_size // 14}
    settings = ARMS[name]
    is_uniform = settings.get("selection") == "uniform"
    return JESTTrainer(
        model=build_siglip(options.size, processor.tokenizer, **sizes, seed=0),
        ref_model=None if is_uniform else build_siglip(options.size, processor.tokenizer, **sizes, seed=1),
        args=JESTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=options.batch_size,
            scoring_batch_size=None if options.device == "cpu" else 5 * options.batch_size,
            learning_rate=1e-4,
            bf16=options.device == "cuda",
            dataloader_num_workers=options.workers,
            logging_steps=1 if options.quick else 10,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=options.device == "cpu",
            **settings,
        ),
        train_dataset=rows,
        processing_class=processor,
    )


def measure(options: argparse.Namespace, name: str, rows: Any, folder: str) -> dict[str, Any]:
    """Train one arm; a step's seconds, its FLOPs in uniform steps, and its host waits."""
    trainer, clock = make_trainer(options, name, rows, folder, options.skip + options.steps), Clock()
    trainer.add_callback(clock)
    trainer.train()
    seconds = np.diff(clock.times[options.skip - 1 :])
    flops = trainer.step_flops.relative_to_iid
    loading = [log["loading_seconds"] for log in trainer.state.log_history if "loading_seconds" in log]
    del trainer
    counter = make_trainer(options, name, rows, folder, COUNTED)
    with counted_waits(options.device) as waits:
        counter.train()
    return {
        "mean": float(seconds.mean()),
        "median": float(np.median(seconds)),
        "loading": float(np.mean(loading[1:] or loading)),
        "flops_relative_to_iid": flops,
        "host_waits_a_step": waits[0] / COUNTED if waits else None,
        "seconds": seconds.tolist(),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="cuda: in bf16")
    parser.add_argument("--size", default="base", help="models: micro, tiny, small or base")
    parser.add_argument("--image_size", type=int, default=224, help="pixels a side; patches are a fourteenth of it")
    parser.add_argument("--batch_size", type=int, default=256, help="examples trained on in a step")
    parser.add_argument("--rows", type=int, default=12_800, help="rows of the data set")
    parser.add_argument("--distinct", type=int, default=1_600, help="different photographs among them")
    parser.add_argument("--workers", type=int, default=14, help="loader workers")
    parser.add_argument("--steps", type=int, default=30, help="steps of each arm that count")
    parser.add_argument("--skip", type=int, default=5, help="first steps of each arm that do not count")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="what is measured")
    parser.add_argument("--quick", action="store_true", help="a tiny model, few rows and steps")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the results")
    options = parser.parse_args(argv)
    if options.quick:
        options.size, options.image_size, options.batch_size, options.workers = "micro", 28, 4, 0
        options.rows, options.distinct, options.steps, options.skip = 64, 16, 2, 1
    logging.set_verbosity_error()
    parts = min(16, options.distinct)
    if options.quick:
        distinct = photographs(options.distinct)
    else:
        with Pool(parts) as pool:
            made = pool.starmap(photographs, [(options.distinct // parts, seed) for seed in range(parts)])
        distinct = [row for part in made for row in part]
    rows = [distinct[number % len(distinct)] for number in range(options.rows)]
    with tempfile.TemporaryDirectory() as folder:
        arms = {name: measure(options, name, rows, folder) for name in options.arms}
    first = next(iter(arms.values()))
    table = [
        (
            name,
            f"{one['mean']:.3f}",
            f"{one['median']:.3f}",
            f"{one['mean'] / first['mean']:.2f}",
            f"{one['flops_relative_to_iid']:.2f}",
            f"{one['loading']:.3f}",
            "-" if one["host_waits_a_step"] is None else f"{one['host_waits_a_step']:.0f}",
        )
        for name, one in arms.items()
    ]
    heads = ["arm", "mean s", "median s", "in uniform steps", "FLOPs, in IID steps", "loading s", "host waits"]
    print(format_table(heads, table))
    card = torch.cuda.get_device_name() if options.device == "cuda" else processor_name()
    settings = {key: value for key, value in vars(options).items() if key not in ("output", "arms")}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    about = {"card": card, "torch": torch.__version__, **settings}
    options.output.write_text(json.dumps({"about": about, "arms": arms}, indent=2) + "\n")


if __name__ == "__main__":
    main()
