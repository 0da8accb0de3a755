# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every family in `FAMILIES` trains end to end, as learner and reference; one that has no row here fails."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from jest_hf.models import FAMILIES, load_model
from tests.helpers import (
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip2,
    tiny_siglip2_processor,
    tiny_siglip_processor,
)
from tests.trainers import logged, make_trainer


# By family: models by seed, their processor, and a view at which they can score (`None` for a family without views).
TABLE = {
    "siglip": (tiny_siglip, tiny_siglip_processor, "patch:16"),
    "siglip2": (tiny_siglip2, tiny_siglip2_processor, "num_patches:4"),
    "clip": (tiny_clip, tiny_clip_processor, "patch:16"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains(tmp_path, name):
    assert name in TABLE, f"family {name!r} has no row in TABLE: add one"
    make_model, make_processor, view = TABLE[name]
    family = FAMILIES[name]
    assert family.model_type == name and bool(family.views) == (view is not None)
    settings = {"scoring_view": view, "cache_reference": True, "max_steps": 2}
    trainer = make_trainer(
        tmp_path, model=make_model(0), reference=make_model(1), processor=make_processor(), settings=settings
    )
    before = torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
    trainer.train()
    assert len(logged(trainer, "selected/learnability")) == 2
    assert trainer.learning_objective.loss_kind == family.loss and trainer.cache_flops > 0
    assert 0 < trainer.step_flops.scoring < 32 / 24 * (trainer.step_flops.training + trainer.step_flops.training_saved)
    trainer.save_model()
    after = torch.cat([value.detach().flatten() for value in load_model(tmp_path).parameters()])
    assert not torch.equal(after, before) and after.isfinite().all()


def test_there_is_no_row_of_a_family_that_is_gone():
    assert TABLE.keys() == FAMILIES.keys()


@pytest.mark.parametrize("kind", ["vision-text-dual-encoder", "chinese_clip"])
def test_a_dual_encoder_of_another_family_is_named_as_such(tmp_path, kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision, text = {**sizes, "image_size": 16, "patch_size": 8}, {**sizes, "vocab_size": 50}
    if kind == "chinese_clip":
        config = ChineseCLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
        model = ChineseCLIPModel(config)
    else:
        parts = ViTConfig(**vision), BertConfig(**text)
        config = VisionTextDualEncoderConfig.from_vision_text_configs(*parts, projection_dim=16)
        model = VisionTextDualEncoderModel(config)
    model.save_pretrained(tmp_path)
    supported = f"model_type='{kind}' is not a supported dual encoder; use one of siglip, siglip2, clip"
    for use in (
        lambda: load_model(tmp_path),
        lambda: make_trainer(tmp_path / "learner", model=model),
        lambda: make_trainer(tmp_path / "learner", model=model, selection="independent"),
        lambda: make_trainer(tmp_path / "reference", reference=model),
    ):
        with pytest.raises(ValueError, match=supported):
            use()
