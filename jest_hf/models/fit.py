# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a dual encoder, its processor and the loss of a run fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jest_hf.models.families import family_of


def check_loss(loss: str, who: str, has_bias: bool) -> None:
    """The sigmoid loss needs a bias: without it each of the many negatives starts at a loss of log 2."""
    if loss == "sigmoid" and not has_bias:
        raise ValueError(
            f"loss='sigmoid' needs a logit_bias, and the {who} has none; use loss='softmax', or SigLIP models."
        )


def check_inputs(inputs: Mapping[str, Tensor], config: Any, role: str) -> None:
    """Compare one collated batch, as `role` ("learner" or "reference") reads it, with the model's configuration."""
    vision, text = config.vision_config, config.text_config
    way_out = f"give the {role} the processor that belongs to it"
    pixels = inputs["pixel_values"]
    if (pixels.dim() == 3) != family_of(config).patches:
        raise ValueError(
            f"the processor makes {'patches' if pixels.dim() == 3 else 'images'}, which a {config.model_type} {role} "
            f"cannot read; {way_out}."
        )
    if pixels.dim() == 4 and pixels.shape[-1] != vision.image_size:
        raise ValueError(
            f"the processor makes images of {pixels.shape[-1]} px, and the {role} takes {vision.image_size} px; "
            f"{way_out}."
        )
    length = inputs["input_ids"].shape[-1]
    if length > text.max_position_embeddings:
        raise ValueError(
            f"captions are padded to {length} tokens, and the {role} has {text.max_position_embeddings} text "
            f"positions; set max_length={text.max_position_embeddings} in JESTDataCollator, or {way_out}."
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any, role: str) -> None:
    """A token beyond the model's vocabulary would be an index error in the middle of the run, or worse on a GPU."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer goes up to token {largest}, and the {role} knows {config.text_config.vocab_size} tokens; "
            f"give the {role} the processor that belongs to it."
        )
