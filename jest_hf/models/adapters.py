# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""LoRA and other adapters: the learner trains an adapter, the reference is the same backbone without this adapter.

A separate reference doubles the weights in memory. If the learner is an adapter on a frozen backbone, the backbone
itself, or the backbone with another adapter, can be the reference: scoring then switches adapters in place. `peft` is
imported only if an adapter is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available


if TYPE_CHECKING:
    from peft import PeftModel


REFERENCE_ADAPTER = "reference"


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the model without its adapters; a model without adapters is returned as it is."""
    return cast(PreTrainedModel, model.get_base_model() if has_adapter(model) else model)


def has_adapter(model: nn.Module) -> TypeGuard[PeftModel]:
    """Return whether this is a `peft.PeftModel`."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def add_adapter(model: nn.Module | None, peft_config: Any) -> nn.Module:
    """Freeze `model` and add a new adapter to it (`peft.get_peft_model`).

    Args:
        model (`torch.nn.Module`, *optional*): The model without an adapter.
        peft_config (`peft.PeftConfig`): Kind and size of the adapter.

    Returns:
        `peft.PeftModel`: the model with the adapter.

    Raises:
        ValueError: if there is no model, or it has an adapter already.
        ImportError: if `peft` is not installed.
    """
    if not is_peft_available():
        raise ImportError("peft_config was given, but peft is not installed: pip install 'jest_hf[peft]'.")
    from peft import get_peft_model

    if model is None:
        raise ValueError(
            "peft_config was given without a model; pass model, or let model_init return one with an adapter "
            "(peft.get_peft_model)."
        )
    if has_adapter(model):
        raise ValueError(
            "peft_config was given, but the model has an adapter already: pass a model without one, or no peft_config."
        )
    return get_peft_model(model, peft_config)


def add_reference_adapter(model: nn.Module, folder: str | Path | None) -> None:
    """Prepare `model` so that its backbone can be the reference.

    Args:
        model (`peft.PeftModel`): The learner.
        folder (`str` or `Path`, *optional*): Folder of the reference's adapter, which is loaded beside the learner's
            adapter and frozen. With `None` the backbone alone is the reference.

    Raises:
        ValueError: if the model has no adapter, as learner and reference would then be the same model.
    """
    if not has_adapter(model):
        raise ValueError(
            "reference='adapter' needs a learner that trains an adapter: pass peft_config, or a peft model, or set "
            "reference='model' for a reference that is a separate model."
        )
    if folder is not None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.load_adapter(str(folder), REFERENCE_ADAPTER, is_trainable=False)
        # peft before 0.21 freezes the other adapters too, and the learner would not train.
        for parameter in trained:
            parameter.requires_grad_()


def adapter_tensors(model: Any, adapter: str = REFERENCE_ADAPTER) -> list[str]:
    """Return the names of the tensors of an adapter, as files have them; `model` is a `peft.PeftModel`."""
    from peft import get_peft_model_state_dict

    return list(get_peft_model_state_dict(model, adapter_name=adapter))


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """Within this context, `model` computes as the reference: with its adapter, or without any.

    Args:
        model (`peft.PeftModel`): The learner, not the module that an engine wraps it in.
    """
    if REFERENCE_ADAPTER not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    learner = model.active_adapter
    model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(learner)


__all__ = ["adapter_tensors", "add_adapter", "add_reference_adapter", "as_reference", "base_model", "has_adapter"]
