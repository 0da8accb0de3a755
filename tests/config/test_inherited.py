# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Each argument of `TrainingArguments` works, is refused, or has no use: none is taken and ignored."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from accelerate.parallelism_config import ParallelismConfig
from transformers import TrainingArguments

from jest_hf import JESTConfig
from jest_hf.config.inherited import IRRELEVANT, REFUSED, WORKS
from tests.helpers import random_rows
from tests.trainers import logged, make_trainer


KNOWN = {one.name for one in fields(TrainingArguments)}
# The name changed with transformers.
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in KNOWN else "gradient_checkpointing"
NOT_NEUTRAL = {
    "gradient_accumulation_steps": 2,
    "remove_unused_columns": True,
    "auto_find_batch_size": True,
    "train_sampling_strategy": "sequential",
    "ignore_data_skip": True,
    "dataloader_in_order": False,
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "prediction_loss_only": True,
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "include_for_metrics": ["loss"],
    "label_names": ["labels"],
    "include_num_input_tokens_seen": "all",
    "neftune_noise_alpha": 5.0,
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "parallelism_config": ParallelismConfig(),
}


def test_every_argument_is_in_one_table():
    tables = [set(WORKS), set(REFUSED), set(IRRELEVANT)]
    assert KNOWN <= set.union(*tables), f"new in transformers: {KNOWN - set.union(*tables)}"
    assert sum(map(len, tables)) == len(set.union(*tables))
    assert set(REFUSED) == set(NOT_NEUTRAL)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_effect_or_another_one_is_refused(tmp_path, name):
    if name not in KNOWN:
        pytest.skip(f"this version of transformers has no {name}")
    with pytest.raises(ValueError, match=rf"(?s)^{name}=.*; .*\.$"):
        JESTConfig(output_dir=tmp_path, use_cpu=True, **{name: NOT_NEUTRAL[name]})


def test_defaults_are_accepted(tmp_path):
    args = JESTConfig(output_dir=tmp_path)
    for name, (neutral, _) in REFUSED.items():
        assert getattr(args, name, neutral[0]) in neutral, name


def test_label_smoothing_of_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1 is for examples with labels"):
        make_trainer(tmp_path, label_smoothing_factor=0.1)


def test_arguments_that_work_work_together(tmp_path):
    """Not each alone, which would take minutes: most are the Trainer's own affair."""
    trainer = make_trainer(
        tmp_path,
        options={"eval_dataset": random_rows(9, seed=4)},
        max_steps=4,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 1e-4},
        warmup_steps=1,
        optim="sgd",
        weight_decay=0.1,
        max_grad_norm=1e-3,
        **{CHECKPOINTING: True},
        torch_empty_cache_steps=2,
        logging_first_step=True,
        logging_steps=2,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=2,
        eval_delay=3,
        eval_on_start=True,
        per_device_eval_batch_size=4,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=False,
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        dataloader_prefetch_factor=1,
        skip_memory_metrics=False,
        full_determinism=True,
        run_name="together",
    )
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [0, 4]
    assert len(list(Path(tmp_path).glob("checkpoint-*"))) == 1
    assert logged(trainer, "learning_rate")[-1] < 1e-3
    assert trainer.optimizer.param_groups[0]["weight_decay"] in (0.0, 0.1)


def test_the_page_has_the_tables():
    page = (Path(__file__).parents[2] / "docs" / "arguments.md").read_text(encoding="utf-8")
    works, refused, irrelevant = (part for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:4])
    assert set(re.findall(r"`(\w+)`", works.split("\n\n", 2)[2])) >= WORKS
    assert re.findall(r"^\| `(\w+)` \|", refused, re.MULTILINE) == list(REFUSED)
    assert re.findall(r"^\| `(\w+)` \|", irrelevant, re.MULTILINE) == list(IRRELEVANT)
