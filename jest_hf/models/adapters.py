# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""LoRA and its relatives: a learner that trains an adapter, and a reference that is the same backbone without it.

A reference of its own doubles the weights in memory. Where the learner is an adapter on a frozen backbone, the
backbone itself (or the backbone with another adapter) can be the reference: scoring then switches adapters in place.
`peft` is imported only where an adapter is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import nn
from transformers.utils.import_utils import is_peft_available


if TYPE_CHECKING:
    from peft import PeftModel


REFERENCE_ADAPTER = "reference"


def base_model(model: nn.Module) -> nn.Module:
    """The model underneath the adapters; a model without any is its own."""
    return model.get_base_model() if has_adapter(model) else model


def has_adapter(model: nn.Module) -> TypeGuard[PeftModel]:
    """Whether this is a `peft.PeftModel`."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def add_adapter(model: nn.Module | None, peft_config: Any) -> nn.Module:
    """
    Freeze `model` and put a fresh adapter on it (`peft.get_peft_model`).

    Raises:
        ValueError: if the model has an adapter already, or there is none.
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
            "peft_config was given, but the model has an adapter already: pass the bare model, or no peft_config."
        )
    return get_peft_model(model, peft_config)


def add_reference_adapter(model: nn.Module, folder: str | Path | None) -> None:
    """
    Make the backbone of `model` serve as the reference.

    Args:
        model (`peft.PeftModel`): The learner.
        folder (`str` or `Path`, *optional*): Where the reference's adapter lies, which is loaded beside the learner's
            and frozen; [`~jest_hf.reference.locate_adapter`] brings it from the Hub. `None`: the backbone alone is the
            reference.

    Raises:
        ValueError: if the model has no adapter: then it would be compared with itself.
    """
    if not has_adapter(model):
        raise ValueError(
            "reference='adapter' needs a learner that trains an adapter: pass peft_config, or a peft model; with "
            "reference='model' the reference is a model of its own."
        )
    if folder is not None:
        model.load_adapter(str(folder), REFERENCE_ADAPTER, is_trainable=False)


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """Within, `model` (a `peft.PeftModel`, not what an engine wraps it in) speaks as the reference."""
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


__all__ = ["add_adapter", "add_reference_adapter", "as_reference", "base_model", "has_adapter"]
