# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run says that a step costs, against the operations that PyTorch counts in the same run."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipConfig, SiglipModel

from jest_hf import JESTTrainer
from tests.helpers import random_rows, tiny_siglip_processor
from tests.trainers import arguments


IMAGE, WORDS = 32, 16
TOWER = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}


def siglip(seed, layers=4):
    """Of several layers: an update of patch embeddings alone needs no gradient of the pixels."""
    torch.manual_seed(seed)
    tower = {**TOWER, "num_hidden_layers": layers}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = SiglipModel(
        SiglipConfig(
            vision_config={**tower, "image_size": IMAGE, "patch_size": 8},
            text_config={**tower, **ids, "vocab_size": 14, "max_position_embeddings": WORDS, "projection_size": 64},
            attn_implementation="eager",  # a fused one is not counted on every machine
        )
    )
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model


def frozen_image_tower(model):
    model.vision_model.requires_grad_(False)
    return model


LORA = {"options": {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}}
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
ROWS = 96
SETUPS = {
    "live": {},
    "live, larger reference": {"reference": lambda: siglip(1, layers=8)},
    "cached": {"cache_reference": True},
    "two stages": {"cache_reference": True, "filter_ratio": 0.5, "prefilter_ratio": 0.5},
    "easy_reference": {"cache_reference": True, "criterion": "easy_reference"},
    "uniform": {"selection": "uniform"},
    "Flexi": {"cache_reference": True, "scoring_view": "patch:16"},
    "LoRA": LORA,
    "LoRA, backbone as reference": {**LORA, "reference": None, "settings": {"reference": "adapter"}},
    "LoRA, Flexi, checkpointing": {**LORA, **CHECKPOINTING, "scoring_view": "patch:16"},
    "online reference": {"reference": None, "settings": {"reference": "online"}},
    "proxy in chunks": {"scoring": "proxy", "gradient_cache_chunk_size": 4, "reference": lambda: siglip(1, layers=2)},
    "gradient caching": {"gradient_cache_chunk_size": 4},
    "gradient caching, Flexi": {"gradient_cache_chunk_size": 4, "scoring_view": "patch:16"},
    "gradient checkpointing": CHECKPOINTING,
    "frozen image tower": {"change": frozen_image_tower},
    "frozen image tower, gradient caching": {"change": frozen_image_tower, "gradient_cache_chunk_size": 4},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
}


def trainer_of(folder, setup):
    setup = {"reference": lambda: siglip(1), "change": lambda model: model, "options": {}, "settings": {}, **setup}
    change, reference = setup.pop("change"), setup.pop("reference")
    options, settings = setup.pop("options"), setup.pop("settings")
    return JESTTrainer(
        model=change(siglip(0)),
        ref_model=None if reference is None else reference(),
        args=arguments(folder, **{"max_steps": 1, **setup, **settings}),
        train_dataset=random_rows(ROWS, size=IMAGE),
        processing_class=tiny_siglip_processor(IMAGE, WORDS),
        **options,
    )


@pytest.mark.parametrize("name", SETUPS)
def test_a_run_knows_what_it_costs(tmp_path, name):
    trainer = trainer_of(tmp_path, dict(SETUPS[name]))
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    assert trainer.run_flops.total == pytest.approx(counter.get_total_flops(), rel=0.02), name
