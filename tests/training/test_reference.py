# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A run that asks its reference once and for all is the run that asks it at every step."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import nn

from jest_hf import JESTTrainer
from jest_hf.models import add_adapter
from tests.helpers import tiny_siglip
from tests.objectives.labelled import image_rows, tiny_vit, tiny_vit_processor
from tests.trainers import arguments, logged, make_trainer


LORA = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, modules_to_save=["classifier"])


def adapted(seed: int) -> nn.Module:
    """With an adapter of random weights in place of zeros, which makes a difference from the start."""
    model = add_adapter(tiny_vit(0), LORA)
    generator = torch.Generator().manual_seed(seed)
    for weight in (weight for weight in model.parameters() if weight.requires_grad):
        weight.data = torch.randn(weight.shape, generator=generator) / 2
    return model


def labelled_trainer(folder, model=None, ref_model=None, **options) -> JESTTrainer:
    return JESTTrainer(
        model=model or tiny_vit(0),
        ref_model=ref_model or tiny_vit(1),
        args=arguments(folder, selection="top_k", **options.pop("settings")),
        train_dataset=image_rows(80),
        processing_class=tiny_vit_processor(),
        **options,
    )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


@pytest.mark.parametrize("named", [True, False], ids=["another adapter", "the backbone"])
def test_losses_of_an_adapter_are_cached_as_it_answers(tmp_path, named):
    """And not as the learner does, whose weights it shares."""
    if named:
        adapted(seed=7).save_pretrained(tmp_path / "adapter")
    learnability = []
    for cached in (False, True):
        trainer = JESTTrainer(
            model=adapted(seed=3),
            ref_model=str(tmp_path / "adapter") if named else None,
            args=arguments(tmp_path / str(cached), selection="top_k", reference="adapter", cache_reference=cached),
            train_dataset=image_rows(80),
            processing_class=tiny_vit_processor(),
        )
        trainer.train()
        learnability.append(logged(trainer, "selected/learnability"))
    live, from_cache = learnability
    assert min(live) > 0.01
    assert from_cache == pytest.approx(live, abs=1e-5)


def with_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
        elif type(module).__name__.endswith("Attention"):
            module.dropout = 0.3
    return model


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_making_finding_and_doing_without_a_cache_end_with_the_same_weights(tmp_path, kind):
    """Dropout draws from the global random state: making a cache must not move it."""

    def trained(folder, cached):
        settings = {"cache_reference": cached}
        if kind == "pairs":
            trainer = make_trainer(tmp_path / folder, model=with_dropout(tiny_siglip(0)), settings=settings)
        else:
            trainer = labelled_trainer(tmp_path / folder, model=with_dropout(tiny_vit(0)), settings=settings)
        trainer.train()
        return weights(trainer.model)

    live, made, found = trained("live", False), trained("cached", True), trained("cached", True)
    assert torch.equal(made, found)
    torch.testing.assert_close(made, live, rtol=1e-4, atol=1e-6)
