# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A process that trains a tiny run, or goes on with it, and writes down how that ended."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import time
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import set_seed

from jest_hf import JESTConfig, JESTTrainer
from tests.invariant import tiny


STEPS = 6  # in the middle of an epoch
SETTINGS = {
    "per_device_train_batch_size": 4,
    "filter_ratio": 0.75,
    "n_chunks": 2,
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "record_selection": True,
    "scoring": "proxy",  # saved in folders of the checkpoint
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
NOTHING_WHOLE = ("No valid checkpoint found", "no checkpoint is whole")


@dataclass(frozen=True)
class Job:
    """
    One process of a run.

    Args:
        folder (`str`): Its output folder.
        rank (`int`): Its rank.
        world_size (`int`): Number of processes.
        store (`str`): A file that does not exist, where the processes meet.
        file_limit (`int`, *optional*): Bytes that a file can have at most: a disk that is full.
    """

    folder: str
    rank: int = 0
    world_size: int = 1
    store: str = ""
    file_limit: int | None = None

    @property
    def outcome(self) -> Path:
        """Where the process writes how the run ended."""
        return Path(self.folder).with_name(f"{Path(self.folder).name}.outcome-{self.rank}.json")


def work(job: Job) -> None:
    """Train with `resume_from_checkpoint=True`, from the start if the run says that nothing can be resumed."""
    os.setsid()
    log = os.open(f"{job.folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    if job.file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_limit, job.file_limit))
    outcome: dict[str, object] = {"job": asdict(job), "error": None, "fresh": None}
    start = time.monotonic()
    try:
        if job.world_size > 1:
            meet(job)
        outcome["fresh"] = train(job)
    except BaseException as error:
        traceback.print_exc()
        outcome["error"] = f"{type(error).__name__}: {error}"
    outcome["seconds"] = time.monotonic() - start
    job.outcome.write_text(json.dumps(outcome))
    logging.shutdown()
    os._exit(0)  # a process group whose other ranks were killed is not waited for


def meet(job: Job) -> None:
    """Make the group of processes, as a launcher does."""
    os.environ |= {"RANK": str(job.rank), "LOCAL_RANK": str(job.rank), "WORLD_SIZE": str(job.world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(job.world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group(
        "gloo",
        init_method=Path(job.store).as_uri(),
        rank=job.rank,
        world_size=job.world_size,
        timeout=timedelta(seconds=60),
    )


def train(job: Job) -> str | None:
    """Train to the end; the sentence that said why nothing can be resumed, if so."""
    trainer = make_trainer(job)
    try:
        trainer.train(resume_from_checkpoint=True)
        return None
    except (ValueError, RuntimeError) as error:  # RuntimeError: on the ranks after the first
        if not any(sentence in str(error) for sentence in NOTHING_WHOLE):
            raise
        sentence = str(error)
    make_trainer(job).train()  # the first one's random state has moved on
    return sentence


def make_trainer(job: Job) -> JESTTrainer:
    set_seed(0)
    return JESTTrainer(
        model=tiny.siglip(0, dropout=0.1),
        ref_model=tiny.siglip(1),
        args=JESTConfig(output_dir=job.folder, **SETTINGS),
        train_dataset=tiny.pairs(128),
        processing_class=tiny.siglip_processor(),
    )


gc.collect()
gc.freeze()  # or each process, forked after this import, would look through all of that for garbage
