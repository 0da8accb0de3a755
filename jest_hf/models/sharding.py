# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Sharding by ZeRO-3 and FSDP2: prepare the learner for it, and exempt other models from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import patch_environment
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as deepspeed_integration


@contextmanager
def built_whole() -> Iterator[None]:
    """Within this context, models that are loaded or built have all of their weights on every device.

    Otherwise transformers partitions each new model as soon as the training arguments of a ZeRO-3 run exist, and in an
    FSDP run with `cpu_ram_efficient_loading` only the first process loads weights.
    """
    # transformers has a function to unset the setting, but none to restore it.
    setting = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()
    try:
        with patch_environment(fsdp_cpu_ram_efficient_loading="false"):
            yield
    finally:
        deepspeed_integration._hf_deepspeed_config_weak_ref = setting


def check_shardable(model: PreTrainedModel) -> None:
    """Check that DeepSpeed and FSDP2 can shard a model.

    Both need parameters with at least one dimension: `fully_shard` splits the first dimension, and DeepSpeed 0.19
        views
    every parameter as bytes to broadcast it.

    Raises:
        ValueError: for a model with parameters without a dimension, such as CLIP's `logit_scale`.
    """
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ValueError(
            f"neither DeepSpeed nor FSDP2 takes parameters without a dimension, and {type(model).__name__} has "
            f"{', '.join(scalars)}; start with the preset ddp."
        )


def prepare_for_fsdp2(model: PreTrainedModel) -> None:
    """Correct the model's list of layers to shard, before accelerate reads the list.

    accelerate shards each layer whose class is in `_no_split_modules`, and then the token embedding by itself. In
    SigLIP and SigLIP 2 the list also has the module around the token embedding, and no parameter can be sharded twice.

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
