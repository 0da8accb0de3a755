# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Check that a dual encoder, its processor and the loss of a run fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from jest_hf.models.families import family_of


logger = logging.get_logger(__name__)


def check_loss(loss: str, who: str, has_bias: bool) -> None:
    """Raise a `ValueError` for the sigmoid loss without a bias.

    Without the bias each of the many negatives starts at a loss of log 2.
    """
    if loss == "sigmoid" and not has_bias:
        raise ValueError(
            f"loss='sigmoid' needs a logit_bias, and the {who} has none; use loss='softmax', or SigLIP models."
        )


def check_inputs(inputs: Mapping[str, Tensor], config: Any, role: str) -> None:
    """Raise a `ValueError` if a model cannot take its inputs from the data collator.

    A learner without an attention mask and with shorter captions than it was made for is a warning: training can adapt
    it. A reference is frozen, and the same is an error.

    Args:
        inputs (mapping of `str` to `torch.Tensor`): The model's inputs for one collated batch.
        config: The model's configuration.
        role (`str`): `"learner"` or `"reference"`, for the message.
    """
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
    if length < text.max_position_embeddings and not family_of(config).attention_mask:
        shorter = (
            f"captions are padded to {length} tokens, and the {role} was made for {text.max_position_embeddings}: it "
            "attends to the padding, and would embed captions otherwise than it was trained to; set max_length="
            f"{text.max_position_embeddings} in JESTDataCollator, or {way_out}."
        )
        if role == "reference":
            raise ValueError(shorter)
        logger.warning(f"{shorter[0].upper()}{shorter[1:]} From random weights, make the learner for {length} tokens.")


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any, role: str) -> None:
    """Raise a `ValueError` if the tokenizer has tokens beyond the model's vocabulary.

    In a run such a token is an index error, which on a GPU ends the process.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer goes up to token {largest}, and the {role} has {config.text_config.vocab_size} tokens; "
            f"give the {role} the processor that belongs to it."
        )
