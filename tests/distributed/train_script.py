# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What `launching` launches: train a tiny model with JESTTrainer, and write down what happened on this rank."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor, TrainerCallback, training_args

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.cli import CONFIGS
from jest_hf.models import add_adapter
from jest_hf.reference import Reference
from tests.distributed.launching import without_compiled_operators
from tests.helpers import random_rows


class ReportingTrainer(JESTTrainer):
    """Remembers which examples of each super-batch reached this rank, and which it learned from, in what order."""

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any) -> Tensor:
        self.seen.append(inputs["example_id"].tolist())
        return super().training_step(model, inputs, *args)

    def learn(self, model: nn.Module, sub_batch: dict[str, Tensor], *args: Any) -> Tensor:
        self.learned.append(sub_batch["example_id"].tolist())
        return super().learn(model, sub_batch, *args)


class Death(TrainerCallback):
    """The last rank is killed as by the kernel, after so many steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    learner: str,
    reference: str | None,
    settings: dict[str, Any],
    resume_from: str | None = None,
    dies_after: int | None = None,
    deepspeed: str | None = None,
    lora: bool = False,
    evaluates: bool = False,
    initialised: bool = False,
) -> dict[str, Any]:
    """
    One run; returns this rank's report.

    Args:
        learner (`str`): Path of the model to train.
        reference (`str`, *optional*): Path of the reference.
        settings (`dict`): Those of JESTConfig.
        resume_from (`str`, *optional*): Path of a checkpoint.
        dies_after (`int`, *optional*): Number of steps after which the last rank is killed.
        deepspeed (`str`, *optional*): Name of a preset whose DeepSpeed settings replace those of the launch.
        lora (`bool`, *optional*, defaults to `False`): Train a LoRA adapter, with the backbone as the reference.
        evaluates (`bool`, *optional*, defaults to `False`): Give the Trainer rows to evaluate on.
        initialised (`bool`, *optional*, defaults to `False`): The learner comes from a `model_init`.
    """
    if deepspeed is not None:
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(CONFIGS / f"{deepspeed}.json")
    args = JESTConfig(**settings)
    model, processor, model_init = learner, None, None
    if lora:
        processor = AutoProcessor.from_pretrained(learner)
        model = AutoModel.from_pretrained(learner)
        torch.manual_seed(0)  # not before: loading a model takes random numbers, under ZeRO-3 others
        model = add_adapter(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    if initialised:
        model, processor = None, AutoProcessor.from_pretrained(learner)

        def model_init() -> nn.Module:
            return AutoModel.from_pretrained(learner)

    trainer = ReportingTrainer(
        model=model,
        model_init=model_init,
        args=args,
        train_dataset=random_rows(96, seed=5),
        eval_dataset=random_rows(16, seed=6) if evaluates else None,
        ref_model=None if lora else reference,
        processing_class=processor,
        callbacks=[] if dies_after is None else [Death(dies_after)],
    )
    trainer.seen, trainer.learned = [], []
    trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_model()
    placed = trainer.reference.model if isinstance(trainer.reference, Reference) else None
    return {
        "engine": type(trainer.model_wrapped).__name__,
        "zero_stage": zero_stage(trainer.model_wrapped),
        "reference": type(placed).__name__,
        "reference_stage": zero_stage(placed),
        "dtypes": [str(next(model.parameters()).dtype) for model in (trainer.model, placed) if model is not None],
        "num_processes": trainer.accelerator.num_processes,
        "process_index": trainer.accelerator.process_index,
        "seen": trainer.seen,
        "learned": trainer.learned,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "weights": sums_of_weights(trainer.model),
        "beside": [sums_of_weights(one.model) for one in trainer.online_models],
    }


def zero_stage(model: nn.Module | None) -> int | None:
    """The stage that a DeepSpeed engine itself says it runs at."""
    return model.zero_optimization_stage() if type(model).__name__ == "DeepSpeedEngine" else None


def sums_of_weights(model: nn.Module) -> dict[str, float]:
    """The sum of each parameter, gathered from all ranks where it is partitioned."""
    partitioned = [weight for weight in model.parameters() if hasattr(weight, "ds_id")]
    gathered = contextlib.nullcontext()
    if partitioned:
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(partitioned)
    with gathered:
        return {name: weight.detach().double().sum().item() for name, weight in model.named_parameters()}


if __name__ == "__main__":
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        without_compiled_operators()
        # DeepSpeed computes in bfloat16 on CPUs as well, but transformers asks for a GPU first.
        training_args.is_torch_bf16_gpu_available = lambda: True
    gc.freeze()  # or each run would look through all that is imported for garbage, several times
    runs = Path(sys.argv[1])
    reports = []
    for run in json.loads(runs.read_text()):
        reports.append(train(**run))
        runs.with_name(f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(reports))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
