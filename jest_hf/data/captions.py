# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Captions: which of a row's captions is used, and its tokens."""

from __future__ import annotations

import hashlib
import json
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


CAPTION_COLUMNS = ("text", "caption", "captions")


MAX_SANE_LENGTH = 1024  # tokenizers without a limit of their own claim one of 1e30


DEFAULT_LENGTH = 64  # SigLIP's (arXiv 2303.15343) and SigLIP 2's


class BrokenCaption(ValueError):
    """A caption that cannot be used; the message says why."""


@dataclass(frozen=True)
class TextEncoder:
    """
    Captions to token ids of one fixed length, as one model wants them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        max_length (`int`): Length L. SigLIP is trained without an attention mask on captions padded to L, so L is
            always filled.
        lower_case (`bool`): Whether to lower-case first.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    lower_case: bool

    def __call__(self, captions: list[str]) -> dict[str, Tensor]:
        """`input_ids` int64 [B, L] and, where the tokenizer gives one, `attention_mask` int64 [B, L] of B captions."""
        if self.lower_case:
            captions = [caption.lower() for caption in captions]
        encoded = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="np"
        )  # by way of numpy: "pt" takes half as long again
        names = (name for name in ("input_ids", "attention_mask") if name in encoded)
        return {name: torch.from_numpy(encoded[name].astype(np.int64, copy=False)) for name in names}

    def same_as(self, other: TextEncoder) -> bool:
        """Whether both give the same tokens for every caption."""
        return (self.max_length, self.lower_case) == (other.max_length, other.lower_case) and (
            self.tokenizer is other.tokenizer
            or tokenizer_definition(self.tokenizer) == tokenizer_definition(other.tokenizer)
        )

    def __repr__(self) -> str:
        case = ", lower_case" if self.lower_case else ""
        return f"{type(self.tokenizer).__name__}(max_length={self.max_length}{case})"


def choose_caption(value: Any, seed: int, epoch: int, example_id: int) -> str:
    """
    The caption of a row; of several, one drawn by `(seed, epoch, example_id)` among those that are not empty.

    Args:
        value (`str` or iterable of `str`): What the caption column holds.
        seed (`int`): Seed of the draw.
        epoch (`int`): Epoch, from 0.
        example_id (`int`): The row's place in the data set.

    Returns:
        `str`: The caption, unchanged.

    Raises:
        BrokenCaption: If there is none, or what there is is not a string.
    """
    usable = usable_captions(value)
    return usable[draw_caption(len(usable), seed, epoch, example_id)]


def draw_caption(n: int, seed: int, epoch: int, example_id: int) -> int:
    """Which of n captions is drawn, from 0, by `(seed, epoch, example_id)`."""
    digest = hashlib.blake2b(f"{seed},{epoch},{example_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % n


def usable_captions(value: Any) -> list[str]:
    """The captions that are not empty; `BrokenCaption` if there is none, or what there is is not a string."""
    captions = (
        [value]
        if value is None or isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
        else value
    )
    wrong = next((caption for caption in captions if caption is not None and not isinstance(caption, str)), None)
    if wrong is not None:
        raise BrokenCaption(f"its caption is a {type(wrong).__name__}, not a string")
    usable = [caption for caption in captions if caption is not None and caption.strip()]
    if not usable:
        raise BrokenCaption("its caption is empty")
    return usable


def tokenizer_definition(tokenizer: PreTrainedTokenizerBase) -> tuple:
    """What decides a tokenizer's output at a given length (fast tokenizers also keep their last padding: left out)."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        model = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    else:
        model = tokenizer.get_vocab()
    sides = (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token_id)
    return type(tokenizer), tokenizer.model_input_names, sides, model


def text_length(tokenizer: PreTrainedTokenizerBase, name: str, max_length: int | None) -> int:
    """The length that texts are padded to: the one asked for, or the tokenizer's own; `name` is for messages."""
    limit = tokenizer.model_max_length
    if max_length is None:
        return limit if limit <= MAX_SANE_LENGTH else DEFAULT_LENGTH
    if not isinstance(max_length, numbers.Integral) or max_length < 1:
        raise ValueError(
            f"max_length={max_length!r} has to be a whole number of at least 1; leave it out for the model's own."
        )
    if max_length > limit:
        raise ValueError(
            f"max_length={max_length} is more than the {limit} tokens that the tokenizer of {name} allows; "
            f"lower max_length to {limit}."
        )
    return max_length
