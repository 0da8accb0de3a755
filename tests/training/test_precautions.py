# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run does, or says, to keep its user from training something else than what was meant."""

from __future__ import annotations

import logging

import datasets
import pytest
import torch
from transformers import SiglipModel

from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.trainers import make_trainer


@pytest.fixture
def said(caplog, monkeypatch):
    """The log of jest_hf."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("jest_hf"), "propagate", True)
    return caplog


@pytest.mark.parametrize("preset", ["jest", "active_siglip"])
def test_weight_decay_leaves_the_temperature_alone(tmp_path, preset):
    trainer = make_trainer(tmp_path, preset=preset, weight_decay=0.1, learning_rate=0.0, proxy_learning_rate=0.01)
    optimizers = [(trainer.model, trainer.create_optimizer())]
    if trainer.proxy is not None:
        trainer.proxy.start(3)
        optimizers.append((trainer.proxy.model, trainer.proxy.optimizer))
    for model, optimizer in optimizers:
        decayed = {id(one) for group in optimizer.param_groups if group["weight_decay"] for one in group["params"]}
        assert id(model.logit_scale) not in decayed
        assert id(model.text_model.head.weight) in decayed


def test_a_learner_of_low_precision_is_warned_of(tmp_path, said):
    make_trainer(tmp_path)
    assert "round away" not in said.text
    make_trainer(tmp_path, model=tiny_siglip(0).to(torch.bfloat16))
    assert "The learner's own weights are bfloat16" in said.text


def test_tf32_without_a_cuda_device_is_told(tmp_path, said):
    make_trainer(tmp_path, selection_precision="bfloat16")
    assert "tf32" not in said.text
    make_trainer(tmp_path, selection_precision="tf32")
    assert said.text.count("selection_precision='tf32' has no effect on cpu") == 1


def test_a_learner_by_name_is_trained_in_float32(tmp_path):
    tiny_siglip(0).to(torch.bfloat16).save_pretrained(tmp_path / "learner")
    tiny_siglip_processor().save_pretrained(tmp_path / "learner")
    assert SiglipModel.from_pretrained(tmp_path / "learner").dtype == torch.bfloat16
    assert make_trainer(tmp_path, model=str(tmp_path / "learner")).model.dtype == torch.float32


def test_a_cache_of_data_with_a_transform_is_warned_of(tmp_path, said):
    rows = datasets.Dataset.from_list(random_rows(80))
    make_trainer(tmp_path / "plain", rows=rows, cache_reference=True, max_steps=1).train()
    assert "a transform of their own" not in said.text
    changing = rows.with_transform(lambda batch: batch)
    make_trainer(tmp_path / "changing", rows=changing, cache_reference=True, max_steps=1).train()
    assert "the training data have a transform of their own" in said.text
