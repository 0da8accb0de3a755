# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Place the reference: whole on each device, or spread over the devices like the learner."""

from __future__ import annotations

from copy import deepcopy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedModel

from jest_hf.models.sharding import add_dimensions, prepare_for_fsdp2


def place_reference(model: PreTrainedModel, accelerator: Accelerator, placement: str = "replica") -> nn.Module:
    """Move a frozen reference to the device, or spread it over the devices.

    Args:
        model ([`~transformers.PreTrainedModel`]): The reference, whole, in eval mode; it is changed in place.
        accelerator ([`~accelerate.Accelerator`]): The Trainer's accelerator, with engine, device and precision.
        placement (`str`, *optional*, defaults to `"replica"`): `"replica"` keeps the whole model on each device.
            `"sharded"` spreads it over the devices, under DeepSpeed ZeRO-3 and FSDP2 only; its forward is then a
            collective, which all ranks must call equally often.

    Returns:
        The model itself, or the DeepSpeed engine around it.

    Raises:
        ValueError: for `"sharded"` under another engine, and for a replica of a model that ZeRO-3 has partitioned.
    """
    if placement == "sharded":
        return _shard(model, accelerator)
    if any(parameter.numel() == 0 for parameter in model.parameters()):
        raise ValueError(
            "ref_model was loaded after the training arguments were made, when ZeRO-3 partitions every model; pass "
            "its id or path, load it before the arguments are made, or set ref_placement='sharded'."
        )
    model.to(accelerator.device)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _lower_precision(model, accelerator.mixed_precision)
    return model


def _shard(model: PreTrainedModel, accelerator: Accelerator) -> nn.Module:
    """Spread the model over the devices with the engine of the learner."""
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.is_fsdp2:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        prepare_for_fsdp2(model)
        return fsdp2_prepare_model(accelerator, model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.deepspeed_plugin.zero_stage == 3:
        import deepspeed

        add_dimensions(model)
        # Without an optimizer the engine only spreads the weights, by the learner's settings.
        settings = deepcopy(accelerator.deepspeed_plugin.deepspeed_config)
        for trained in ("optimizer", "scheduler"):
            settings.pop(trained, None)
        settings["zero_optimization"].pop("offload_optimizer", None)
        engine = deepspeed.initialize(model=model, config=settings)[0]
        engine.eval()  # unlike that of a module, it returns nothing
        return engine
    raise ValueError(
        f"ref_placement='sharded' needs DeepSpeed ZeRO-3 or FSDP2, and this run uses {accelerator.distributed_type}; "
        "set ref_placement='replica', or start with the preset zero3 or fsdp2."
    )


def _lower_precision(model: nn.Module, mixed_precision: str) -> None:
    """Cast the weights of a replica: under DeepSpeed there is no autocast, and the learner's weights are cast too."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if mixed_precision in dtypes:
        temperature = {name: value.data for name, value in model.named_parameters(recurse=False)}
        model.to(dtypes[mixed_precision])
        # The temperature stays fp32: a bias of -16.56 is -16.5 in bfloat16, an error of one sign in all scores.
        for name, value in temperature.items():
            model.get_parameter(name).data = value
