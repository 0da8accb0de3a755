# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The layers that FSDP2 shards, and whole models in a ZeRO-3 run."""

from __future__ import annotations

import os
from copy import deepcopy

import pytest
import torch
from transformers import AutoModel, SiglipForImageClassification
from transformers.integrations import is_fsdp_enabled
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from jest_hf.models.load import load_model
from jest_hf.models.sharding import add_dimensions, built_whole, partitioned_if_possible, prepare_for_fsdp2
from tests.distributed.processes import run
from tests.helpers import tiny_clip, tiny_siglip, tiny_siglip2


@pytest.mark.parametrize(("model", "prefix"), [(tiny_siglip, "Siglip"), (tiny_siglip2, "Siglip2")])
def test_nothing_around_the_token_embedding_is_sharded_with_it(model, prefix):
    model = model()
    assert f"{prefix}TextEmbeddings" in model._no_split_modules
    prepare_for_fsdp2(model)
    layers = ("EncoderLayer", "MultiheadAttentionPoolingHead", "VisionEmbeddings")
    assert model._no_split_modules == {prefix + layer for layer in layers}


@pytest.mark.parametrize("prepare", [add_dimensions, prepare_for_fsdp2])
def test_a_scalar_has_a_dimension_in_memory_and_none_in_files(tmp_path, prepare):
    model, before, plain = tiny_clip(), tiny_clip(), AutoModel.from_pretrained
    parameters = list(model.parameters())
    prepare(model)
    prepare(model)
    assert all(mine is one for mine, one in zip(model.parameters(), parameters, strict=True))
    assert model.logit_scale.shape == (1,)
    copied = deepcopy(model)
    with torch.no_grad():
        model.logit_scale.add_(1.0)
        before.logit_scale.add_(1.0)
    inputs = {"input_ids": torch.tensor([[3, 4, 2], [3, 5, 2]]), "pixel_values": torch.rand(2, 3, 16, 16)}
    assert torch.equal(model(**inputs).logits_per_image, before(**inputs).logits_per_image)

    def save(which, name, *args, **options):
        which.save_pretrained(tmp_path / name, *args, **options)
        return plain(tmp_path / name)

    other = {name: value + 1 for name, value in model.state_dict().items()}  # as an engine has gathered them
    found = [save(model, "own"), save(model, "given", state_dict=other), save(model, "by_place", True, other)]
    assert [one.logit_scale.shape for one in found] == [()] * 3
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in found[0].state_dict().items())
    assert found[1].logit_scale == found[2].logit_scale == before.logit_scale + 1
    assert save(copied, "copied").logit_scale == tiny_clip().logit_scale  # its own, and not the original's
    before.save_pretrained(tmp_path / "plain")
    saved, expected = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("own", "plain"))
    assert saved == expected


def test_layers_that_the_model_lacks_are_not_sharded():
    """accelerate would raise: one tower has no layers of the other, and not every model has tokens."""
    config = tiny_siglip().config
    model = SiglipForImageClassification(config)
    assert "SiglipTextEmbeddings" in model._no_split_modules
    prepare_for_fsdp2(model)
    assert model._no_split_modules == {"SiglipEncoderLayer", "SiglipMultiheadAttentionPoolingHead"}
    clip = tiny_clip()
    prepare_for_fsdp2(clip)
    assert clip.get_input_embeddings() is None
    assert clip._no_split_modules == {"CLIPTextEmbeddings", "CLIPEncoderLayer", "CLIPVisionEmbeddings"}


def test_a_process_that_does_not_save_may_have_nothing(tmp_path):
    model = tiny_clip()
    add_dimensions(model)
    model.save_pretrained(tmp_path, is_main_process=False, state_dict={})


def test_a_model_without_scalars_is_not_changed():
    model = tiny_siglip()
    add_dimensions(model)
    assert "save_pretrained" not in vars(model)


@pytest.fixture
def zero3():
    setting = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # transformers keeps a weak reference only
    yield setting
    unset_hf_deepspeed_config()


def test_models_are_whole_inside_and_the_setting_is_back_afterwards(zero3):
    with pytest.raises(RuntimeError, match="in the middle"), built_whole():
        assert not is_deepspeed_zero3_enabled()
        raise RuntimeError("in the middle")
    assert is_deepspeed_zero3_enabled()


def test_zero3_partitions_models_while_they_are_loaded_if_they_have_no_scalars(zero3, tmp_path):
    for build, partitioned in ((tiny_siglip, True), (tiny_clip, False)):
        with partitioned_if_possible(build):
            assert is_deepspeed_zero3_enabled() is partitioned
        assert is_deepspeed_zero3_enabled()
    with built_whole():
        tiny_clip().save_pretrained(tmp_path)
    assert load_model(tmp_path).logit_scale.shape == ()  # DeepSpeed would raise


def loading_of_fsdp():
    """`built_whole` switches off for a while that only the first process loads weights."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    before = is_fsdp_enabled()
    with built_whole():
        inside = is_fsdp_enabled()
    return before, inside, is_fsdp_enabled()


def test_every_process_loads_the_weights_also_in_a_run_of_fsdp():
    assert run(1, loading_of_fsdp) == [(True, False, True)]


def test_without_zero3_nothing_changes():
    with built_whole():
        assert not is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()
