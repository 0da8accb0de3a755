# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Load a model as what it was saved as: a dual encoder whole, anything else with the head that it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModel, PreTrainedModel

from jest_hf.models.dual_encoder import FAMILIES


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


__all__ = ["load_model"]
