# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A learner that is made by `model_init`: each training, such as a trial of a search, is the first."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from jest_hf import JESTTrainer
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.objectives.labelled import text_rows, tiny_bert, tiny_tokenizer
from tests.trainers import arguments, logged


def weights(model) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


@pytest.mark.parametrize("changes", [{"preset": "jest"}, {"preset": "active_siglip"}, {"reference": "online"}])
def test_a_second_training_is_the_first_again(tmp_path, changes):
    """Also for the models that are trained beside the learner."""
    trainer = JESTTrainer(
        model_init=lambda: tiny_siglip(0),
        ref_model=tiny_siglip(1),
        args=arguments(tmp_path, filter_ratio=0.5, **changes),
        train_dataset=random_rows(80),
        processing_class=tiny_siglip_processor(),
    )
    ends = []
    for _ in range(2):
        trainer.train()
        ends.append([weights(trainer.model), *(weights(beside.model) for beside in trainer.online_models)])
    assert all(torch.equal(first, second) for first, second in zip(*ends, strict=True))


def test_what_it_makes_says_what_it_is_trained_for(tmp_path):
    trainer = JESTTrainer(
        model_init=lambda: tiny_bert(0),
        ref_model=tiny_bert(1),
        args=arguments(tmp_path, selection="independent"),
        train_dataset=text_rows(80),
        processing_class=tiny_tokenizer(),
    )
    assert trainer.learning_objective.name == "classification"
    trainer.train()
    assert len(logged(trainer, "selected/learnability")) == 3


def test_adapters_are_its_own_to_put_on(tmp_path):
    options = {"model_init": lambda: tiny_siglip(0), "peft_config": LoraConfig(target_modules=["q_proj"])}
    rows = {"train_dataset": random_rows(80), "processing_class": tiny_siglip_processor()}
    with pytest.raises(ValueError, match="peft_config was given without a model; pass model, or let model_init"):
        JESTTrainer(args=arguments(tmp_path), ref_model=tiny_siglip(1), **options, **rows)
