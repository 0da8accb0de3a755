# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
A process that trains runs of the matrix, one after the other, with the `jest_hf` that is on its path.

    python -m tests.invariant.runner job.json

The job says which `runs`, in which `folder` the records go, which `tree` the package has to come from, and perhaps a
`mutation`. Each rank writes `<run>.<rank>.json` when a run is finished, or when it has failed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from transformers import set_seed

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.cli import main as jest_hf_command
from jest_hf.evaluation import ZeroShotCallback
from tests.invariant import tiny
from tests.invariant.matrix import RUNS, SETTINGS, Cached, Run
from tests.invariant.mutations import MUTATIONS
from tests.invariant.recorded import Recorded, of_folder, results


def train(run: Run, name: str, mutation: str | None = None) -> dict[str, Any]:
    """One run in the folder of its name, and its record."""
    extra, changes = {}, {}
    if isinstance(run, Cached):
        make_cache(run, f"{name}-cache")
        changes["reference_cache"] = f"{name}-cache"
    record = play(run, name, {**run.settings, **changes}, mutation)
    if run.resumed_at is not None:
        checkpoint = f"{name}/checkpoint-{run.resumed_at}"
        extra["before"] = {item: record[item] for item in ("learner", "companions", "batches")}
        record = play(run, f"{name}-resumed", run.settings, mutation, checkpoint)
    if isinstance(run, Cached) and is_first():
        extra["cache"] = of_folder(Path(f"{name}-cache"))
    return record | extra


def play(
    run: Run, folder: str, settings: dict[str, Any], mutation: str | None, checkpoint: str | None = None
) -> dict[str, Any]:
    """Train, evaluate, and write down."""
    ratio = {} if "preset" in settings else {"filter_ratio": 0.75}
    args = JESTConfig(output_dir=folder, **{**SETTINGS, **ratio, **settings})
    bases = (MUTATIONS[mutation],) if mutation else ()
    trainer_type = type("Trainer", (*bases, Recorded, JESTTrainer), {})
    set_seed(0)  # whatever ran before in this process
    trainer = trainer_type(
        model=run.model(),
        ref_model=run.reference(),
        args=args,
        train_dataset=run.rows(),
        eval_dataset=run.evaluated(),
        processing_class=run.processor(),
        **run.options(),
    )
    check_launch(trainer)
    if run.zero_shot:
        rows, classes = tiny.labelled_images(11, seed=9), list(tiny.COLOURS)
        trainer.add_callback(ZeroShotCallback(trainer, rows, classes, templates=("a {}", "{}")))
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    return results(trainer, metrics, (lambda: trainer.predict(run.evaluated())) if run.predicts else None)


def make_cache(run: Cached, folder: str) -> None:
    """As a user does: rows in a file, a reference in a folder, and the command."""
    rows = tiny.saved_rows(folder, run.rows())
    reference = tiny.saved("reference", tiny.siglip(1), tiny.siglip_processor())
    flags = ["--ref_model", reference, "--dataset", rows, "--output_dir", folder, "--disable_tqdm"]
    with patch.object(Accelerator, "end_training"):  # it would end the process group, which the next run needs
        jest_hf_command(["cache-reference", *flags, *run.flags])


def check_launch(trainer: JESTTrainer) -> None:
    """Whether the processes that were started train together: one alone would give the same on both sides too."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    found = trainer.accelerator.num_processes
    if found != started:
        raise RuntimeError(f"{started} processes were started, and the trainer trains on {found}.")


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def check_package(tree: Path) -> None:
    """Whether all of the package comes from the tree that is tested, card templates included."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "jest_hf":
            for place in [module.__file__] if module.__file__ else list(module.__path__):
                if not Path(place).resolve().is_relative_to(tree.resolve()):
                    raise ImportError(f"{name} was imported from {place}, which is not in {tree}.")


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    for name in job["runs"]:
        start = time.perf_counter()
        try:
            record = {"items": train(RUNS[name], name, job["mutation"])}
            check_package(Path(job["tree"]))
        except Exception as error:
            traceback.print_exc()
            record = {"error": f"{type(error).__name__}: {error}"}
        record["seconds"] = round(time.perf_counter() - start, 2)
        file = Path(job["folder"]) / f"{name}.{rank}.json"
        file.with_suffix(".part").write_text(json.dumps(record))
        file.with_suffix(".part").rename(file)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if is_first():  # tens of runs with three checkpoints each
            shutil.rmtree(name, ignore_errors=True)
            shutil.rmtree(f"{name}-resumed", ignore_errors=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
