# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Where the reference lies: whole on each device, or spread over the devices as the learner is."""

from __future__ import annotations

from copy import deepcopy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedModel

from jest_hf.models.sharding import check_shardable, prepare_for_fsdp2


def place_reference(model: PreTrainedModel, accelerator: Accelerator, placement: str = "replica") -> nn.Module:
    """
    Put a frozen reference where it is to be asked.

    Args:
        model ([`~transformers.PreTrainedModel`]): the reference, whole, in eval mode; it is changed in place.
        accelerator ([`~accelerate.Accelerator`]): that of the Trainer; it knows engine, device and precision.
        placement (`str`, *optional*, defaults to `"replica"`): `"replica"` keeps all of it on each device. `"sharded"`
            spreads it over the devices, under DeepSpeed ZeRO-3 and FSDP2 only; its forward is then a collective: all
            ranks must call it equally often.

    Returns:
        The model itself, or the DeepSpeed engine around it.

    Raises:
        ValueError: for `"sharded"` under another engine, or of a model that none can shard; and for a replica of a
            model that ZeRO-3 has partitioned.
    """
    if placement == "sharded":
        return _shard(model, accelerator)
    if any(parameter.numel() == 0 for parameter in model.parameters()):
        raise ValueError(
            "ref_model was loaded after the training arguments, when ZeRO-3 partitions every model; pass its id or "
            "path, load it before the arguments are made, or set ref_placement='sharded'."
        )
    model.to(accelerator.device)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _lower_precision(model, accelerator.mixed_precision)
    return model


def _shard(model: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """The model, spread as the learner is."""
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.is_fsdp2:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        prepare_for_fsdp2(model)
        return fsdp2_prepare_model(accelerator, model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.deepspeed_plugin.zero_stage == 3:
        import deepspeed

        check_shardable(model)
        # Without an optimizer the engine only spreads the weights; the learner's settings say how.
        settings = deepcopy(accelerator.deepspeed_plugin.deepspeed_config)
        for trained in ("optimizer", "scheduler"):
            settings.pop(trained, None)
        settings["zero_optimization"].pop("offload_optimizer", None)
        engine = deepspeed.initialize(model=model, config=settings)[0]
        engine.eval()  # which, unlike a module's, returns nothing
        return engine
    raise ValueError(
        f"ref_placement='sharded' needs DeepSpeed ZeRO-3 or FSDP2, and this run uses {accelerator.distributed_type}; "
        "set ref_placement='replica', or start with the preset zero3 or fsdp2."
    )


def _lower_precision(model: nn.Module, mixed_precision: str) -> None:
    """There is no autocast under DeepSpeed: the learner's weights have the low precision, so must the replica's."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if mixed_precision in dtypes:
        temperature = {name: value.data for name, value in model.named_parameters(recurse=False)}
        model.to(dtypes[mixed_precision])
        # A bias of -16.56 rounded to bfloat16 is -16.5, and the error has the same sign in all scores.
        for name, value in temperature.items():
            model.get_parameter(name).data = value
