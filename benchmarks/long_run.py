# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a long run grows: memory, and the time of a checkpoint, over 3,000 steps on data with 20 % broken rows.

    python benchmarks/long_run.py             # 3,000 steps, and benchmarks/results/long_run.json
    python benchmarks/long_run.py --steps 60  # to see that it runs

The smallest model on the CPU, with joint selection, a frozen reference, the ledger and a log every 10 steps. Each
fifth row is broken: no image, bytes that are no image, half a PNG, no caption, a row that raises. The resident memory
(VmRSS) is sampled every 100 steps; the growth counts from the sample after `--warm_up` steps. A checkpoint is timed
from the call to the last file, with the removal of an older one; its CPU time is that of all threads, which other work
on the machine changes little.

`log_history` of the Trainer keeps every log of a run, in memory and in each checkpoint's `trainer_state.json`. That
growth is the Trainer's own and is reported by itself: bytes of that file, and the CPU time of writing it.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import TrainerCallback

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.data import build_processor
from jest_hf.models import build_siglip
from jest_hf.report import format_table


RESULTS = Path(__file__).parent / "results" / "long_run.json"
MIB = 2**20
WORDS = ("red", "green", "blue", "white", "star", "circle", "square", "ring")


class HalfGood(Dataset[dict[str, Any]]):
    """Random pictures with captions, of which every fifth row is broken, each in another way than the one before.

    Args:
        n_rows (`int`): Number of rows.
    """

    def __init__(self, n_rows: int) -> None:
        generator = np.random.default_rng(0)
        self.rows: list[dict[str, Any] | None] = []
        for number in range(n_rows):
            image = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            file = io.BytesIO()
            image.save(file, "PNG")
            good = {"image": file.getvalue(), "text": " ".join(generator.choice(WORDS, 3))}
            half = file.getvalue()[:60]
            broken = [{**good, "image": None}, {**good, "image": half}, {**good, "image": b"no"}, {**good, "text": ""}]
            self.rows.append(good if number % 5 else [*broken, None][number // 5 % 5])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        if row is None:
            raise OSError(f"row {index} cannot be read")
        return row


def resident_bytes() -> int:
    """Return the resident memory of this process, with what the allocator keeps for later."""
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024


class Memory(TrainerCallback):
    """Samples the memory after every so many steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.samples: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.samples.append({"step": state.global_step, "bytes": resident_bytes()})


class Timed(JESTTrainer):
    """Times each checkpoint."""

    checkpoints: list[dict[str, float]]

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        step, began, used = self.state.global_step, time.perf_counter(), time.process_time()
        super()._save_checkpoint(*arguments, **options)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - used
        path = Path(self.args.output_dir) / f"checkpoint-{step}" / "trainer_state.json"
        used = time.process_time()
        self.state.save_to_json(str(path.with_name("again.json")))
        of_state = time.process_time() - used
        path.with_name("again.json").unlink()
        self.checkpoints.append(
            {
                "step": step,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "trainer_state_cpu_seconds": of_state,
                "state_bytes": path.stat().st_size,
            }
        )


def run(steps: int, n_rows: int, save_steps: int, every: int, folder: str) -> dict[str, Any]:
    """Train, and return the samples of memory and the times of checkpoints."""
    torch.manual_seed(0)
    processor = build_processor([" ".join(WORDS)], image_size=16, max_length=8)
    models = [build_siglip("micro", processor.tokenizer, image_size=16, patch_size=8, seed=seed) for seed in (0, 1)]
    args = JESTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=4,
        filter_ratio=0.5,
        n_chunks=2,
        learning_rate=1e-4,
        logging_steps=10,
        save_steps=save_steps,
        save_total_limit=2,
        record_selection=True,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        log_level="error",
    )
    memory = Memory(every)
    trainer = Timed(
        model=models[0],
        ref_model=models[1],
        args=args,
        train_dataset=HalfGood(n_rows),
        processing_class=processor,
        callbacks=[memory],
    )
    trainer.checkpoints = []
    trainer.train()
    seen = trainer.statistics.seen
    return {
        "samples": memory.samples,
        "checkpoints": trainer.checkpoints,
        "broken_share": trainer.statistics.skipped / seen,
        "logs": len(trainer.state.log_history),
    }


def summary(result: dict[str, Any], warm_up: int) -> dict[str, Any]:
    """Return growth of memory since the warm-up in MiB, and the medians of the first and last third of checkpoints."""
    samples = [sample for sample in result["samples"] if sample["step"] >= warm_up]
    checkpoints = result["checkpoints"]
    third = max(1, len(checkpoints) // 3)

    def median(part: list[dict[str, float]], own: bool) -> float:
        return float(np.median([one["cpu_seconds"] - own * one["trainer_state_cpu_seconds"] for one in part]))

    return {
        "growth_mib": (samples[-1]["bytes"] - samples[0]["bytes"]) / MIB,
        "largest_growth_mib": (max(sample["bytes"] for sample in samples) - samples[0]["bytes"]) / MIB,
        "checkpoint_cpu_seconds_first_third": median(checkpoints[:third], False),
        "checkpoint_cpu_seconds_last_third": median(checkpoints[-third:], False),
        "without_trainer_state_first_third": median(checkpoints[:third], True),
        "without_trainer_state_last_third": median(checkpoints[-third:], True),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--save_steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=100, help="steps between two samples of memory")
    parser.add_argument("--warm_up", type=int, default=200, help="steps before the growth counts")
    parser.add_argument("--results", type=Path, help="file of the results; default: none unless 3,000 steps are taken")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = run(options.steps, options.rows, options.save_steps, options.every, folder)
    result["summary"] = summary(result, options.warm_up)
    result["settings"] = {
        **{name: value for name, value in vars(options).items() if name != "results"},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    times = {one["step"]: one for one in result["checkpoints"]}
    rows = [
        [
            f"{sample['step']:,}",
            f"{sample['bytes'] / MIB:.1f}",
            *(
                [
                    f"{one['seconds']:.2f}",
                    f"{one['cpu_seconds']:.3f}",
                    f"{one['trainer_state_cpu_seconds']:.3f}",
                    f"{one['state_bytes'] / MIB:.2f}",
                ]
                if (one := times.get(int(sample["step"])))
                else [""] * 4
            ),
        ]
        for sample in result["samples"]
    ]
    headers = ["step", "memory, MiB", "checkpoint, s", "of it CPU, s", "trainer_state, CPU s", "trainer_state, MiB"]
    print(format_table(headers, rows))
    print(json.dumps(result["summary"], indent=1))
    path = options.results or (RESULTS if options.steps >= 3000 else None)
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
