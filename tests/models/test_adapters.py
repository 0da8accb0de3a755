# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Adapters: the trained parameters, and a reference that shares the learner's backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.models import (
    DualEncoder,
    add_adapter,
    add_reference_adapter,
    as_reference,
    base_model,
    expose_temperature,
)
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


# Random weights instead of zeros, so that a new adapter changes the outputs.
LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2, "init_lora_weights": False}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return _collate(random_rows(6))


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    from jest_hf import JESTDataCollator

    return JESTDataCollator(tiny_siglip_processor())(rows)


def _embed(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    expose_temperature(base_model(model))
    return DualEncoder(base_model(model).config, tiny_siglip_processor()).score(model, batch, 4).image


def _adapter(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    add_adapter(tiny_siglip(0), LoraConfig(**LORA)).save_pretrained(folder)
    return str(folder)


def test_the_backbone_alone_is_the_reference(batch: dict[str, torch.Tensor]) -> None:
    backbone = _embed(tiny_siglip(0), batch)
    learner = add_adapter(tiny_siglip(0), LoraConfig(**LORA))
    add_reference_adapter(learner, None)
    before = _embed(learner, batch)
    trainable = {name for name, value in learner.named_parameters() if value.requires_grad}
    with as_reference(learner):
        torch.testing.assert_close(_embed(learner, batch), backbone)
    assert not torch.allclose(before, backbone)
    assert torch.equal(_embed(learner, batch), before)
    assert {name for name, value in learner.named_parameters() if value.requires_grad} == trainable
    assert trainable and all("lora" in name for name in trainable)


def test_another_adapter_is_the_reference(batch: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = _adapter(tmp_path / "reference", seed=1)
    expected = _embed(PeftModel.from_pretrained(tiny_siglip(0), path), batch)
    torch.manual_seed(2)
    learner = add_adapter(tiny_siglip(0), LoraConfig(**LORA))
    add_reference_adapter(learner, path)
    before = _embed(learner, batch)
    trainable = {name for name, value in learner.named_parameters() if value.requires_grad}
    with as_reference(learner):
        torch.testing.assert_close(_embed(learner, batch), expected)
    assert not torch.allclose(before, expected)
    assert torch.equal(_embed(learner, batch), before)
    assert {name for name, value in learner.named_parameters() if value.requires_grad} == trainable
    assert trainable and not any("reference" in name for name in trainable)


def _trainer(folder: Path, model: torch.nn.Module, changes: dict[str, Any], **options: Any) -> JESTTrainer:
    settings = {"output_dir": str(folder), "per_device_train_batch_size": 8, "filter_ratio": 0.5, "max_steps": 3}
    settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "learning_rate": 0.1, "save_steps": 3}
    return JESTTrainer(
        model=model,
        args=JESTConfig(**settings, **changes),
        train_dataset=random_rows(40),
        processing_class=tiny_siglip_processor(),
        **options,
    )


@pytest.mark.parametrize("named", [False, True], ids=["backbone", "adapter"])
@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
def test_training_changes_the_learners_adapter_alone(tmp_path: Path, named: bool, cached: bool) -> None:
    adapter = _adapter(tmp_path / "reference", seed=1) if named else None
    changes = {"reference": "adapter", "cache_reference": cached}
    trainer = _trainer(tmp_path, tiny_siglip(0), changes, ref_model=adapter, peft_config=LoraConfig(**LORA))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora" in name and "reference" not in name}
    # The saved checkpoint is the adapter; with the backbone it is the trained learner.
    loaded = PeftModel.from_pretrained(tiny_siglip(0), tmp_path / "checkpoint-3")
    batch = _collate(random_rows(6))
    torch.testing.assert_close(_embed(loaded, batch), _embed(trainer.model, batch))


def test_both_ways_to_give_an_adapter_train_the_same(tmp_path: Path) -> None:
    results = []
    for way in ("peft_config", "model"):
        torch.manual_seed(0)
        options = {"peft_config": LoraConfig(**LORA)} if way == "peft_config" else {}
        model = tiny_siglip(0) if options else add_adapter(tiny_siglip(0), LoraConfig(**LORA))
        trainer = _trainer(tmp_path / way, model, {}, ref_model=tiny_siglip(1), **options)
        trainer.train()
        results.append(trainer.model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reference='adapter' needs a learner that trains an adapter"):
        _trainer(tmp_path, tiny_siglip(0), {"reference": "adapter"})
    with pytest.raises(ValueError, match="has an adapter already"):
        add_adapter(add_adapter(tiny_siglip(0), LoraConfig(**LORA)), LoraConfig(**LORA))
