# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Replicas of the reference; tests/distributed/test_engines.py spreads one for real."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from jest_hf.reference import place_reference
from tests.helpers import tiny_clip, tiny_siglip


def accelerator_of(engine, mixed_precision="no"):
    """What place_reference reads of an Accelerator."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        distributed_type=engine,
        mixed_precision=mixed_precision,
        deepspeed_plugin=SimpleNamespace(zero_stage=2),
    )


def test_a_replica_is_the_model_itself():
    model = tiny_siglip(1)
    assert place_reference(model, accelerator_of(DistributedType.NO), "replica") is model
    for name, weight in tiny_siglip(1).state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


@pytest.mark.parametrize("build", [tiny_siglip, tiny_clip])
def test_a_replica_beside_deepspeed_takes_its_precision_and_keeps_its_temperature(build):
    model = place_reference(build(1), accelerator_of(DistributedType.DEEPSPEED, "bf16"))
    own = dict(model.named_parameters(recurse=False))
    assert "logit_scale" in own
    for name, weight in model.named_parameters():
        assert weight.dtype == (torch.float32 if name in own and weight.numel() == 1 else torch.bfloat16), name
    whole = dict(build(1).named_parameters(recurse=False))
    assert all(torch.equal(own[name], whole[name]) for name in own)
    # A forward with both precisions gives what one in fp32 would, to the precision of bfloat16.
    inputs = {"input_ids": torch.ones(2, 8, dtype=torch.int64), "pixel_values": torch.rand(2, 3, 16, 16)}
    if build is tiny_clip:
        inputs["input_ids"][:, -1] = 2
    with torch.no_grad():
        torch.testing.assert_close(
            model(**inputs).image_embeds.float(), build(1)(**inputs).image_embeds, atol=0.02, rtol=0.0
        )


def test_a_replica_beside_deepspeed_in_fp32_keeps_its_precision():
    model = place_reference(tiny_siglip(1), accelerator_of(DistributedType.DEEPSPEED))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("engine", [DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.DEEPSPEED])
def test_only_an_engine_that_shards_can_shard_the_reference(engine):
    """DeepSpeed here is ZeRO-2."""
    with pytest.raises(ValueError, match="ref_placement='sharded' needs DeepSpeed ZeRO-3 or FSDP2"):
        place_reference(tiny_siglip(1), accelerator_of(engine), "sharded")


def test_a_replica_must_be_whole():
    model = tiny_siglip(1)
    model.logit_scale.data = torch.empty(0)  # what ZeRO-3 leaves of a parameter
    with pytest.raises(ValueError, match="ref_model was loaded after the training arguments"):
        place_reference(model, accelerator_of(DistributedType.NO))
