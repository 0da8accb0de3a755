# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Warnings of settings that are allowed and can hardly be meant; and silence where they can."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig

from jest_hf import JESTTrainer
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.trainers import arguments


EQUAL, SMALL = "The reference has the learner's weights", "The sub-batch has 8 pairs"
RATE, EVALUATION = "learning_rate=5e-05 is the default", "eval_dataset=None"
LORA = LoraConfig(r=2, target_modules=["q_proj"])


def warnings_of(folder, caplog, *, model=None, reference=None, options=None, **changes):
    """Which of the four warnings the construction of a trainer gives, each at most once; and the trainer."""
    caplog.clear()
    trainer = JESTTrainer(
        model=model or tiny_siglip(0),
        train_dataset=random_rows(64),
        processing_class=tiny_siglip_processor(),
        **{
            "args": arguments(folder, **{"per_device_train_batch_size": 16, **changes}),
            "ref_model": reference or tiny_siglip(1),
            **(options or {}),
        },
    )
    given = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    found = [one for one in (EQUAL, SMALL, RATE, EVALUATION) for text in given if text.startswith(one)]
    assert len(found) == len(set(found))
    return set(found), trainer


def with_data(**more):
    return {"eval_dataset": random_rows(4), **more}


def test_usual_settings_give_no_warning(tmp_path, caplog):
    assert warnings_of(tmp_path, caplog, options=with_data())[0] == set()


@pytest.mark.parametrize("changes, warned", [
    ({}, True),
    ({"criterion": "easy_reference"}, False),
    ({"criterion": "hard_learner"}, False),
    ({"selection_warmup_steps": 2}, False),
    ({"selection": "uniform"}, False),
])  # fmt: skip
def test_a_reference_equal_to_the_learner(tmp_path, caplog, changes, warned):
    found, _ = warnings_of(tmp_path, caplog, reference=tiny_siglip(0), options=with_data(), **changes)
    assert found == ({EQUAL} if warned else set())


def test_a_reference_that_differs_in_one_weight(tmp_path, caplog):
    reference = tiny_siglip(0)
    with torch.no_grad():
        reference.logit_bias += 1
    assert warnings_of(tmp_path, caplog, reference=reference, options=with_data())[0] == set()


@pytest.mark.parametrize("touched", [False, True])
def test_the_backbone_as_the_reference_of_an_untouched_adapter(tmp_path, caplog, touched):
    adapter = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=not touched)
    options = with_data(peft_config=adapter, ref_model=None)
    settings = arguments(tmp_path, per_device_train_batch_size=16, reference="adapter")
    found, trainer = warnings_of(tmp_path, caplog, options={**options, "args": settings})
    assert found == (set() if touched else {EQUAL})
    if not touched:  # and it is true
        trainer.train()
        losses = trainer.state.log_history[0]
        assert losses["selected/learnability"] == 0 == losses["rejected/learnability"]


@pytest.mark.parametrize("changes, warned", [
    ({}, True), ({"per_device_train_batch_size": 9}, False), ({"selection": "independent"}, False),
])  # fmt: skip
def test_a_sub_batch_of_eight_pairs(tmp_path, caplog, changes, warned):
    found, _ = warnings_of(tmp_path, caplog, **{"per_device_train_batch_size": 8, "options": with_data(), **changes})
    assert found == ({SMALL} if warned else set())


@pytest.mark.parametrize("selection, warned", [("joint", True), ("uniform", False)])
def test_no_evaluation_data(tmp_path, caplog, selection, warned):
    assert warnings_of(tmp_path, caplog, selection=selection)[0] == ({EVALUATION} if warned else set())


@pytest.mark.parametrize("named, usual", [(False, "random weights"), (True, "pre-trained")])
def test_the_default_learning_rate(tmp_path, caplog, named, usual):
    learner = tiny_siglip(0)
    learner.config._name_or_path = "owner/name" if named else ""
    found, _ = warnings_of(tmp_path, caplog, model=learner, options=with_data(), learning_rate=5e-5)
    assert found == {RATE} and usual in caplog.text


def test_the_default_learning_rate_of_an_adapter(tmp_path, caplog):
    options = with_data(peft_config=copy.deepcopy(LORA))
    assert warnings_of(tmp_path, caplog, options=options, learning_rate=5e-5)[0] == set()
