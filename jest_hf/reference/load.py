# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The frozen reference model: load it by Hub id or path, with its own processor, and keep it from ever learning."""

from __future__ import annotations

from typing import Any

from transformers import AutoModel, AutoProcessor, PreTrainedModel

from jest_hf.models.sharding import built_whole


def load_reference(
    ref_model: str | PreTrainedModel, revision: str | None = None, processor: Any | None = None
) -> tuple[PreTrainedModel, Any | None]:
    """
    Load and freeze a reference.

    Args:
        ref_model (`str` or [`~transformers.PreTrainedModel`]): a Hub id, a local path, or a model, which is frozen
            in place.
        revision (`str`, *optional*): branch, tag or commit; only with a Hub id.
        processor (*optional*): the reference's processor. Default: for an id or path the one stored beside the model;
            for a model `None`, which means that it reads what the learner reads.

    Returns:
        The model (whole also under ZeRO-3, eval mode, no gradients; weights are read from safetensors alone, since a
        pickle runs code) and its processor.
    """
    if isinstance(ref_model, str):
        if processor is None:
            processor = AutoProcessor.from_pretrained(ref_model, revision=revision)
        with built_whole():
            ref_model = AutoModel.from_pretrained(ref_model, revision=revision, use_safetensors=True)
    elif revision is not None:
        raise ValueError(
            f"ref_model_revision={revision!r} names a revision of a Hub repository, but ref_model is a model object; "
            "pass the repository id as ref_model, or drop the revision."
        )
    return ref_model.eval().requires_grad_(False), processor
