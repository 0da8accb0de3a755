# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Load a model as the class it was saved as: a dual encoder with both towers, other models with their head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from safetensors import safe_open
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from jest_hf.models.families import FAMILIES


def load_model(name: str | Path, **options: Any) -> PreTrainedModel:
    """Load a learner, proxy or reference.

    Args:
        name (`str` or `Path`): Hub id or local path.
        **options: Options of `from_pretrained`.

    Raises:
        ValueError: for a backbone without a head, which has no loss, and for a class that neither belongs to
            transformers nor is registered with `AutoModel`.
    """
    config = AutoConfig.from_pretrained(name)
    saved_as = (config.architectures or ["nothing"])[0]
    known = getattr(transformers, saved_as, None)
    has_head = "For" in saved_as or saved_as.endswith("LMHeadModel")
    if has_head and known is not None:
        return known.from_pretrained(name, **options)
    registered = known is None and saved_as == _automatic(config)
    if registered or (config.model_type in FAMILIES and not has_head):
        return AutoModel.from_pretrained(name, **options)
    if known is None and config.architectures:
        raise ValueError(
            f"{str(name)!r} was saved as {saved_as}, which is no class of transformers; load it with its own class "
            "and pass the model, or register the class with AutoModel.register."
        )
    raise ValueError(
        f"{str(name)!r} was saved as {saved_as}, which has no loss of its own; use a dual encoder, or a model "
        "such as ...ForImageClassification, ...ForSequenceClassification or ...ForCausalLM."
    )


def _automatic(config: PretrainedConfig) -> str | None:
    """Return the name of the class that `AutoModel` loads; a user can register a class of their own there."""
    return getattr(MODEL_MAPPING[type(config)], "__name__", None) if type(config) in MODEL_MAPPING else None


def restore_renamed(model: nn.Module, folder: str | Path) -> bool:
    """Load the weights of a checkpoint into a model whose `save_pretrained` writes them under other names.

    transformers 5 saves some models (ViT) with the parameter names of earlier versions, while its Trainer resumes by
    the names in the model: it keeps the start weights of parameters that it does not find, and only logs this.

    Args:
        model (`torch.nn.Module`): The model to load into.
        folder (`str` or `Path`): The checkpoint.

    Returns:
        `bool`: whether the names differ, and the weights were loaded. Otherwise the model is not changed.
    """
    files = list(Path(folder).glob("model*.safetensors"))
    if not isinstance(model, PreTrainedModel) or not files:
        return False
    saved: set[str] = set()
    for path in files:
        with safe_open(path, "pt") as file:
            saved |= set(file.keys())
    if saved <= model.state_dict().keys():
        return False
    loaded = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(loaded.state_dict())
    return True


__all__ = ["load_model", "restore_renamed"]
