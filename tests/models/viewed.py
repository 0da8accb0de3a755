# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Small models with several patches a side, and every kind of view with a model that accepts it."""

from __future__ import annotations

import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from jest_hf import JESTDataCollator
from jest_hf.models import DualEncoder, accept_views, expose_temperature
from tests.helpers import (
    TOWER,
    random_rows,
    tiny_clip_processor,
    tiny_siglip2,
    tiny_siglip2_processor,
    tiny_siglip_processor,
)


WORDS = {"vocab_size": 14, "max_position_embeddings": 8, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
MIDDLE = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}


def small_siglip(image_size=32, patch_size=8, tower=TOWER):
    torch.manual_seed(0)
    vision = {**tower, "image_size": image_size, "patch_size": patch_size}
    config = SiglipConfig(
        vision_config=vision, text_config={**tower, **WORDS, "projection_size": tower["hidden_size"]}
    )
    return SiglipModel(config)


def middle_siglip(image_size=64, patch_size=16):
    return small_siglip(image_size, patch_size, MIDDLE)


def small_clip(image_size=32, patch_size=8):
    torch.manual_seed(0)
    vision = {**TOWER, "image_size": image_size, "patch_size": patch_size}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config={**TOWER, **WORDS}, projection_dim=24))


def small_siglip2():
    return tiny_siglip2()


PROCESSORS = {
    "siglip": tiny_siglip_processor,
    "clip": tiny_clip_processor,
    "siglip2": lambda image_size: tiny_siglip2_processor(),
}
# Every kind of view, with a model that accepts it.
CASES = [
    (small_siglip, "patch:16"),
    (small_siglip, "image:16"),
    (small_siglip, "drop:0.5"),
    (small_clip, "patch:16"),
    (small_clip, "image:24"),
    (small_clip, "drop:0.75"),
    (middle_siglip, "patch:32"),
    (small_siglip2, "num_patches:6"),
]
FIXED = [case for case in CASES if "num_patches" not in case[1]]


def set_up(build, n_rows=6):
    """Return a model that accepts views, its reader, and a batch of images of several shapes."""
    model = build()
    expose_temperature(model)
    accept_views(model)
    size = getattr(model.config.vision_config, "image_size", None)
    processor = PROCESSORS[model.config.model_type](size)
    rows = random_rows(n_rows, size=40) + random_rows(2, size=23, seed=1)
    return model.eval(), DualEncoder(model.config, processor), JESTDataCollator(processor)(rows[-n_rows:])
