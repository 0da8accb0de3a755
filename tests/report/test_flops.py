# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The FLOP counter against counts by hand, and the cost of a step against the published ratios."""

from __future__ import annotations

import pytest
from transformers import CLIPConfig, CLIPModel, Siglip2Config, SiglipConfig, SiglipModel

from jest_hf.report import StepFlops, forward_flops, step_flops


WIDTH, MLP, LAYERS, PATCH, TEXT = 32, 48, 3, 8, 12
TOWER = {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
VISION = {**TOWER, "patch_size": PATCH}
WORDS = {
    **TOWER,
    "vocab_size": 50,
    "max_position_embeddings": TEXT,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def by_hand(tokens: int) -> int:
    """Layers of a tower: four projections, two products of the attention, two of the MLP; a multiply-add is two."""
    layer = 4 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH + 2 * tokens * WIDTH * MLP
    return 2 * LAYERS * layer


def patches_by_hand(patches: int) -> int:
    return 2 * patches * WIDTH * 3 * PATCH**2


def head_by_hand(patches: int) -> int:
    """SigLIP's attention pooling: one query, keys and values of all patches, and an MLP on the one token."""
    return 2 * (2 * WIDTH**2 + 2 * patches * WIDTH**2 + 2 * patches * WIDTH + 2 * WIDTH * MLP)


SIGLIP_TEXT = by_hand(TEXT) + 2 * WIDTH**2


@pytest.mark.parametrize("image_size", [None, 24, 64])
def test_siglip(image_size):
    config = SiglipConfig(vision_config={**VISION, "image_size": 32}, text_config=WORDS)
    patches = ((image_size or 32) // PATCH) ** 2
    expected = patches_by_hand(patches) + by_hand(patches) + head_by_hand(patches)
    assert forward_flops(config, image_size) == {"image": expected, "text": SIGLIP_TEXT}


@pytest.mark.parametrize("num_patches", [None, 9, 30])
def test_naflex(num_patches):
    config = Siglip2Config(vision_config={**VISION, "num_patches": 16}, text_config=WORDS)
    patches = num_patches or 16
    expected = patches_by_hand(patches) + by_hand(patches) + head_by_hand(patches)
    assert forward_flops(config, num_patches=num_patches) == {"image": expected, "text": SIGLIP_TEXT}


def test_clip_and_shorter_texts():
    vision, words = {**VISION, "image_size": 32}, WORDS
    config = CLIPConfig(vision_config=vision, text_config=words, projection_dim=20)
    image = patches_by_hand(16) + by_hand(17) + 2 * WIDTH * 20
    assert forward_flops(config, text_length=7) == {"image": image, "text": by_hand(7) + 2 * WIDTH * 20}


@pytest.mark.parametrize("architecture", [SiglipModel, CLIPModel])
def test_a_model_is_counted_by_its_configuration_and_left_alone(architecture):
    config = architecture.config_class(vision_config={**VISION, "image_size": 32}, text_config=WORDS)
    model = architecture(config).train()
    implementation = model.config._attn_implementation
    assert forward_flops(model) == forward_flops(config)
    assert model.training and model.config._attn_implementation == implementation
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_sizes_of_the_wrong_kind_of_model():
    naflex = Siglip2Config(vision_config={**VISION, "num_patches": 16}, text_config=WORDS)
    with pytest.raises(ValueError, match="image_size=32.*num_patches"):
        forward_flops(naflex, 32)
    with pytest.raises(ValueError, match="num_patches=16.*image_size"):
        forward_flops(SiglipConfig(vision_config=VISION, text_config=WORDS), num_patches=16)


# arXiv 2406.17711: cost of a step relative to IID, by filter ratio; its Table 1 says 2.33, its Figure 1 implies 2.67.
RATIOS = {
    0.5: {"paper": 1.33, "plain": 1.67, "uncached": 2.33},
    0.8: {"paper": 2.33, "plain": 2.67, "uncached": 4.33},
    0.9: {"paper": 4.00, "plain": 4.33, "uncached": 7.67},
}


@pytest.mark.parametrize("filter_ratio", RATIOS)
@pytest.mark.parametrize("kind", ["paper", "plain", "uncached"])
def test_published_ratios(filter_ratio, kind):
    step = step_flops(
        1e9,
        sub_batch=256,
        super_batch=round(256 / (1 - filter_ratio)),
        reference_forward=1e9 if kind == "uncached" else 0.0,
        convention="paper" if kind == "paper" else "plain",
    )
    assert step.relative_to_iid == pytest.approx(RATIOS[filter_ratio][kind], abs=0.005)


def test_parts_of_a_step():
    step = step_flops(10.0, sub_batch=4, super_batch=20, reference_forward=3.0, selection_widths=(8, 16))
    assert step == StepFlops(training=120.0, scoring=200.0, reference=60.0, selection=4 * 20 * 4 * (8 + 16))
    assert step.total == 120 + 200 + 60 + 7680
    assert step_flops(10.0, sub_batch=4, super_batch=4, scoring_forward=0.0).relative_to_iid == 1.0


def test_wrong_arguments():
    with pytest.raises(ValueError, match="convention='jest'"):
        step_flops(1.0, sub_batch=1, super_batch=2, convention="jest")
    with pytest.raises(ValueError, match="sub_batch=3 exceeds super_batch=2"):
        step_flops(1.0, sub_batch=3, super_batch=2)
