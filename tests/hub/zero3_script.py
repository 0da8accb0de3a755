# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What test_round_trip_zero3 launches: train under ZeRO-3 against a reference from the Hub, evaluate, and push."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
from safetensors.torch import save_file

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.cli import CONFIGS
from tests.distributed.launching import without_compiled_operators
from tests.helpers import random_rows
from tests.hub.test_publisher import EVALUATION_ROWS, metrics


def main(folder: Path) -> None:
    given = json.loads((folder / "runs.json").read_text())[0]
    # Weights as small as these are whole on every rank, where the engine is not told to spread them too.
    engine = json.loads((CONFIGS / "zero3.json").read_text())
    engine["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero3.json").write_text(json.dumps(engine))
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(folder / "zero3.json")
    trainer = JESTTrainer(
        model=given["learner"],
        ref_model=given["reference"],
        args=JESTConfig(**given["settings"]),
        train_dataset=random_rows(80),
        eval_dataset=EVALUATION_ROWS,
    )
    trainer.train()
    parameters = dict(trainer.model.named_parameters())
    whole = [name for name, parameter in parameters.items() if parameter.numel() > 0]
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        weights = {name: weight.detach().clone() for name, weight in parameters.items()}
    evaluation = metrics(trainer)
    commit = trainer.push_to_hub(model_name="pushed", language="en")
    report = {
        "stage": trainer.model_wrapped.zero_optimization_stage(),
        "num_processes": trainer.accelerator.num_processes,
        "whole": whole,
        "reference": trainer.ref_model.config._commit_hash,
        "reference_sum": sum(weight.double().sum().item() for weight in trainer.ref_model.parameters()),
        "evaluation": evaluation,
        "commit": None if commit is None else commit.oid,  # which the first rank alone gets
    }
    rank = os.environ["RANK"]
    (folder / f"rank{rank}.json").write_text(json.dumps([report]))
    save_file(weights, folder / f"gathered{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    without_compiled_operators()
    main(Path(sys.argv[1]).parent)
