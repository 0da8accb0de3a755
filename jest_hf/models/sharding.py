# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Sharding by DeepSpeed and FSDP2: prepare the learner for it, and exempt other models from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from accelerate.utils import patch_environment
from torch import Tensor, nn
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


@contextmanager
def partitioned_if_possible(build: Callable[[], nn.Module]) -> Iterator[None]:
    """Within this context, ZeRO-3 partitions models while they are loaded, unless they have scalar parameters.

    DeepSpeed 0.19 fails on parameters without a dimension. A model that has some, such as CLIP, is loaded whole, and
    partitioned when training starts, after [`add_dimensions`].

    Args:
        build (`Callable`): Builds a model like the one to load; called on the meta device, in a ZeRO-3 run only.
    """
    if not deepspeed_integration.is_deepspeed_zero3_enabled():
        yield
        return
    with built_whole():
        with torch.device("meta"):
            scalars = _scalars(build())
        if scalars:
            yield
            return
    yield


def add_dimensions(model: PreTrainedModel) -> None:
    """Give scalar parameters, such as CLIP's `logit_scale`, the shape `[1]` for as long as the model is in memory.

    DeepSpeed and FSDP2 need a dimension: `fully_shard` splits the first one, and DeepSpeed 0.19 views every parameter
    as bytes to broadcast it. `model.save_pretrained` writes these parameters without a dimension, as plain
    `transformers` loads them; the Trainer saves with it too. Checkpoints of the engines themselves have the shape
    `[1]`. A second call has no effect.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model without adapters, before an engine wraps it. Its
            parameters remain the same objects.
    """
    scalars = _scalars(model)
    for parameter in scalars.values():
        parameter.data = parameter.data.reshape(1)
    if scalars:
        model.save_pretrained = MethodType(partial(_save_scalars, tuple(scalars)), model)  # type: ignore[method-assign]


def _scalars(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in parameters if parameter.ndim == 0}


def _save_scalars(
    scalars: tuple[str, ...],
    model: PreTrainedModel,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> None:
    """Save a model as its class does, with these parameters as scalars."""
    tensors = dict(model.state_dict() if state_dict is None else state_dict)
    # The state of a process that does not save may be empty.
    tensors |= {name: tensors[name].squeeze(0) for name in scalars if name in tensors}
    save = type(model).save_pretrained
    save(model, save_directory, is_main_process=is_main_process, state_dict=tensors, **options)


def prepare_for_fsdp2(model: PreTrainedModel) -> None:
    """Give scalar parameters a dimension, and correct what accelerate reads of the model: the layers to shard.

    accelerate shards each layer whose class is in `_no_split_modules`, and then the token embedding by itself. In
    SigLIP and SigLIP 2 the list also has the module around the token embedding, and no parameter can be sharded twice.
    In a model of one tower, such as `SiglipForImageClassification`, the list also has layers of the other tower, which
    accelerate does not find. `CLIPModel` and models without tokens raise when accelerate wants their token embedding:
    they have none here, and CLIP's is sharded with the module around it.
    """
    add_dimensions(model)
    try:
        token_embedding = model.get_input_embeddings()
    except NotImplementedError:
        token_embedding = None
        model.get_input_embeddings = MethodType(_no_embedding, model)  # type: ignore[method-assign]
    classes = {type(module).__name__ for module in model.modules()}
    around = {
        type(module).__name__
        for module in model.modules()
        if module is not token_embedding and token_embedding in set(module.modules())
    }
    model._no_split_modules = (set(model._no_split_modules or ()) & classes) - around


def _no_embedding(model: PreTrainedModel) -> None:
    return None
