# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The layers that FSDP2 shards, and whole models in a ZeRO-3 run."""

from __future__ import annotations

import os

import pytest
from transformers.integrations import is_fsdp_enabled
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from jest_hf.models.sharding import built_whole, prepare_for_fsdp2
from tests.distributed.processes import run
from tests.helpers import tiny_clip, tiny_siglip, tiny_siglip2


@pytest.mark.parametrize(("model", "prefix"), [(tiny_siglip, "Siglip"), (tiny_siglip2, "Siglip2")])
def test_nothing_around_the_token_embedding_is_sharded_with_it(model, prefix):
    model = model()
    assert f"{prefix}TextEmbeddings" in model._no_split_modules
    prepare_for_fsdp2(model)
    layers = ("EncoderLayer", "MultiheadAttentionPoolingHead", "VisionEmbeddings")
    assert model._no_split_modules == {prefix + layer for layer in layers}


def test_a_parameter_without_a_dimension_is_refused_by_name():
    with pytest.raises(ValueError, match="CLIPModel has logit_scale; start with the preset ddp"):
        prepare_for_fsdp2(tiny_clip())


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
