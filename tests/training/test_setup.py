# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The learner is prepared for the engine that wraps it; tests/distributed has the engines themselves."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from transformers import CLIPModel

from jest_hf import JESTTrainer
from jest_hf.training.engine import Engine
from tests.helpers import random_rows, tiny_clip, tiny_clip_processor
from tests.trainers import arguments, logged


@pytest.fixture(params=["is_fsdp", "is_deepspeed"])
def engine(request, monkeypatch):
    """The learner is prepared for this engine, but no engine wraps it."""
    monkeypatch.setattr(Engine, request.param, True)
    return request.param


def clip_trainer(folder, changes=None, **options):
    options = {"model": tiny_clip(0), "ref_model": tiny_clip(1)} | options
    return JESTTrainer(
        args=arguments(folder, **(changes or {})),
        train_dataset=random_rows(80),
        processing_class=tiny_clip_processor(),
        **options,
    )


def trained(folder):
    trainer = clip_trainer(folder, {"save_strategy": "steps", "save_steps": 3})
    shape = trainer.model.logit_scale.shape
    trainer.train()
    return shape, logged(trainer, "loss"), CLIPModel.from_pretrained(folder / "checkpoint-3")


def test_a_dimension_of_the_temperature_changes_nothing(tmp_path, engine, monkeypatch):
    shape, losses, model = trained(tmp_path / engine)
    monkeypatch.undo()
    plain_shape, plain_losses, plain = trained(tmp_path / "plain")
    assert (shape, plain_shape) == ((1,), ())
    assert losses == plain_losses
    assert model.logit_scale != tiny_clip(0).logit_scale
    for name, weight in model.state_dict().items():
        assert weight.shape == plain.state_dict()[name].shape and torch.equal(weight, plain.state_dict()[name]), name


def test_every_learner_of_model_init_is_prepared(tmp_path, engine):
    trainer = clip_trainer(tmp_path, model=None, model_init=lambda: tiny_clip(0))
    for model in (trainer.model, trainer.call_model_init()):
        assert model.logit_scale.shape == (1,)
        assert ("get_input_embeddings" in vars(model)) is (engine == "is_fsdp")


def test_a_cached_backbone_is_the_same_under_every_engine(tmp_path, engine, monkeypatch):
    """A cache is known by the sha256 of shapes and weights, which are taken before the learner is prepared."""
    identities = []
    for name in (engine, "plain"):
        options = {"ref_model": None, "peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
        clip_trainer(tmp_path / name, {"reference": "adapter", "cache_reference": True}, **options).train()
        manifest = json.loads((tmp_path / name / "reference_cache" / "manifest.json").read_text())
        identities.append(manifest["reference"])
        monkeypatch.undo()
    assert identities[0] == identities[1]
