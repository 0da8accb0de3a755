# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What it takes for a dual encoder to be sharded by ZeRO-3 and FSDP2, and for another one to stay whole beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import patch_environment
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as deepspeed_integration


@contextmanager
def built_whole() -> Iterator[None]:
    """
    Models that are loaded or built in here have all of their weights on every device.

    Otherwise, once the training arguments of a ZeRO-3 run exist, transformers partitions each model at its birth; and
    in an FSDP run with `cpu_ram_efficient_loading` only the first process loads any weights.
    """
    # transformers offers a way to unset the setting, and none to put the same one back.
    setting = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()
    try:
        with patch_environment(fsdp_cpu_ram_efficient_loading="false"):
            yield
    finally:
        deepspeed_integration._hf_deepspeed_config_weak_ref = setting


def check_shardable(model: PreTrainedModel) -> None:
    """
    Refuse a model that neither DeepSpeed nor FSDP2 can take.

    `fully_shard` knows no parameters without a dimension, and DeepSpeed 0.19 views every parameter as bytes to
    broadcast it, which they cannot be.

    Raises:
        ValueError: for a model with such parameters, as CLIP's `logit_scale` is one.
    """
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ValueError(
            f"neither DeepSpeed nor FSDP2 takes parameters without a dimension, and {type(model).__name__} has "
            f"{', '.join(scalars)}; start with the preset ddp."
        )


def prepare_for_fsdp2(model: PreTrainedModel) -> None:
    """
    Name the layers to shard so that accelerate can: call it before the model is handed over.

    accelerate shards each layer whose class the model names in `_no_split_modules`, and then the token embedding by
    itself. SigLIP and SigLIP 2 name the module around the token embedding too, and nothing can be sharded twice.

    Raises:
        ValueError: as [`check_shardable`].
    """
    check_shardable(model)
    token_embedding = model.get_input_embeddings()
    around = {
        type(module).__name__
        for module in model.modules()
        if module is not token_embedding and token_embedding in module.modules()
    }
    model._no_split_modules = set(model._no_split_modules or ()) - around
