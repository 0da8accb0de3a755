# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Trainers of tiny models, shared by the tests."""

from __future__ import annotations

from jest_hf import JESTConfig, JESTTrainer
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


def arguments(folder, **changes) -> JESTConfig:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "filter_ratio": 0.75,
        "n_chunks": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return JESTConfig(**{**settings, **changes})


def make_trainer(
    folder, *, model=None, reference=None, rows=None, processor=None, options=None, settings=None, **changes
):
    """`reference` is the model; settings whose names are taken here come in `settings`."""
    return JESTTrainer(
        model=model if model is not None else tiny_siglip(0),
        ref_model=reference if reference is not None else tiny_siglip(1),
        args=arguments(folder, **{**changes, **(settings or {})}),
        train_dataset=rows if rows is not None else random_rows(80),
        processing_class=processor or tiny_siglip_processor(),
        **(options or {}),
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]
