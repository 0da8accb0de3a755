# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Load a model as what it was saved as: a dual encoder whole, anything else with the head that it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from jest_hf.models.families import FAMILIES


def load_model(name: str | Path, **options: Any) -> PreTrainedModel:
    """
    Load a learner, proxy or reference.

    Args:
        name (`str` or `Path`): Hub id or local path.
        **options: Of `from_pretrained`.

    Raises:
        ValueError: for a model without a head (a bare backbone has no loss).
    """
    config = AutoConfig.from_pretrained(name)
    saved_as = (config.architectures or ["nothing"])[0]
    if "For" in saved_as or saved_as.endswith("LMHeadModel"):
        return getattr(transformers, saved_as).from_pretrained(name, **options)
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"{str(name)!r} was saved as {saved_as}, which has no loss of its own; use a dual encoder, or a model "
            "such as ...ForImageClassification, ...ForSequenceClassification or ...ForCausalLM."
        )
    return AutoModel.from_pretrained(name, **options)


def restore_renamed(model: nn.Module, folder: str | Path) -> bool:
    """
    Load the weights of a checkpoint into a model whose `save_pretrained` writes them under other names.

    transformers 5 saves some models (ViT) under the names of earlier versions, and its Trainer resumes by the names
    that the model has: what it does not find keeps the weights that the run started with, and a log line says so.

    Returns:
        Whether that was the case, and the weights are loaded; otherwise nothing is done.
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
