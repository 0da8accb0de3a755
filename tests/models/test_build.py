# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Models from a size name."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModel

from jest_hf.models import build_siglip
from tests.helpers import tiny_tokenizer


def build(size="tiny", seed=0, **changes):
    settings = {"image_size": 16, "patch_size": 8, "seed": seed, **changes}
    return build_siglip(size, tiny_tokenizer(with_mask=False), **settings)


def test_the_configuration_comes_from_the_size_and_the_tokenizer():
    config = build("tiny", image_size=24, patch_size=4).config
    for tower in (config.vision_config, config.text_config):
        assert (tower.hidden_size, tower.num_hidden_layers) == (96, 4)
        assert (tower.num_attention_heads, tower.intermediate_size) == (4, 384)
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (24, 4)
    text = config.text_config
    assert (text.vocab_size, text.max_position_embeddings, text.projection_size) == (14, 8, 96)
    assert (text.pad_token_id, text.bos_token_id, text.eos_token_id) == (0, None, 2)


def test_the_temperature_starts_as_in_the_paper():
    model = build()
    assert model.logit_scale.item() == pytest.approx(math.log(10))
    assert model.logit_bias.item() == -10
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_the_seed_decides_the_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.rand(3), expected)
    weights = [model.vision_model.embeddings.patch_embedding.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_it_is_saved_as_a_plain_checkpoint(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name


def test_sizes_that_do_not_exist():
    with pytest.raises(ValueError, match="size='huge' is not known; choose one of micro, tiny, small, base"):
        build("huge")
    with pytest.raises(ValueError, match="patch_size=5 does not divide image_size=16"):
        build(patch_size=5)
