# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Forward and backward of one example, counted without values, against the same with a real model."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from jest_hf.models import accept_views, base_model
from jest_hf.report.counting import Trained, flops_of_inputs, update_flops
from tests.helpers import tiny_clip, tiny_siglip, tiny_siglip2


CHECKPOINTING = {"use_reentrant": False}


def llama():
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="eager")


def vit():
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        num_labels=4,
    )
    return ViTForImageClassification._from_config(config, attn_implementation="eager")


TEXTS = {"input_ids": torch.zeros(3, 8, dtype=torch.int64)}
PIXELS = {"pixel_values": torch.zeros(3, 3, 16, 16)}
PATCHES = {
    "pixel_values": torch.zeros(3, 16, 48),
    "pixel_attention_mask": torch.ones(3, 16, dtype=torch.int64),
    "spatial_shapes": torch.tensor([[4, 4]] * 3),
}
MODELS = {
    "siglip": (tiny_siglip, {**TEXTS, **PIXELS}),
    "clip": (tiny_clip, {**TEXTS, **PIXELS}),
    "siglip2": (tiny_siglip2, {**TEXTS, **PATCHES}),
    "language model": (llama, TEXTS),
    "classifier": (vit, PIXELS),
}


def frozen(model, *names):
    for name, value in model.named_parameters():
        value.requires_grad_(not any(one in name for one in names))
    return model


TRAINED = {
    "all weights": lambda model: model,
    "half": lambda model: frozen(model, "vision_model", "layers.0", "layer.0"),
    "adapter": lambda model: get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])),
}


@pytest.mark.parametrize("checkpointing", [None, CHECKPOINTING])
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("name", MODELS)
def test_an_update_is_counted_as_it_is(name, trained, checkpointing):
    make, inputs = MODELS[name]
    model = make()
    model.set_attn_implementation("eager")
    if name == "classifier" and trained == "adapter":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "query"]))
    else:
        model = TRAINED[trained](model)
    is_pair = "embeds" not in name and len(inputs) > 1
    base = base_model(model)
    forward, update = update_flops(
        base.config, inputs, Trained.of(model, checkpointing), architecture=None if is_pair else type(base)
    )
    if checkpointing is not None:
        (getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable)(checkpointing)
    model.train()
    one = {key: value[:1] for key, value in inputs.items()}
    with FlopCounterMode(display=False) as counter:
        output = model(**one)
        counted = counter.get_total_flops()
        (output.image_embeds.sum() + output.text_embeds.sum() if is_pair else output.logits.sum()).backward()
    # The one logit of a pair, and the angles that some language models make by a matrix product.
    assert forward == pytest.approx(counted, rel=2e-3)
    assert update == pytest.approx(counter.get_total_flops(), rel=2e-3)
    assert all(value.device.type == "cpu" for value in model.parameters())


def test_what_is_trained():
    model = tiny_siglip()
    assert Trained.of(model).is_whole and not Trained.of(model, {}).is_whole
    model.logit_bias.requires_grad_(False)
    assert "logit_bias" not in Trained.of(model).names and len(Trained.of(model).names) > 10
    adapted = get_peft_model(tiny_siglip(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert Trained.of(adapted).adapter.r == 2 and all("lora_" in name for name in Trained.of(adapted).names)


def test_the_forward_is_the_same_whatever_is_trained():
    model = frozen(tiny_siglip(), "vision_model")
    accept_views(model)
    inputs = MODELS["siglip"][1]
    forward, update = update_flops(model.config, inputs, Trained.of(model))
    towers = flops_of_inputs(model.config, inputs)
    assert forward == sum(towers.values())
    assert update == pytest.approx(towers["image"] + 3 * towers["text"], rel=0.01)
