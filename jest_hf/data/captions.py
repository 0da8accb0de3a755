# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Captions: choose one of a row's captions, and turn captions into token ids."""

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


MAX_SANE_LENGTH = 1024  # a tokenizer without a limit has model_max_length=1e30

DEFAULT_LENGTH = 64  # text length of SigLIP (arXiv 2303.15343) and SigLIP 2


class BrokenCaption(ValueError):
    """A caption that cannot be used. The message gives the reason."""


@dataclass(frozen=True)
class TextEncoder:
    """Turns captions into token ids of one fixed length.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of a model.
        max_length (`int`): Length L in tokens. Every caption is padded to L, since SigLIP is trained on padded
            captions without an attention mask.
        lower_case (`bool`): Whether captions are lower-cased first.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    lower_case: bool

    def __call__(self, captions: list[str]) -> dict[str, Tensor]:
        """Return `input_ids` of B captions and the tokenizer's `attention_mask`, if any, each int64 [B, L]."""
        if self.lower_case:
            captions = [caption.lower() for caption in captions]
        encoded = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="np"
        )  # return_tensors="pt" takes 1.5 times as long
        names = (name for name in ("input_ids", "attention_mask") if name in encoded)
        return {name: torch.from_numpy(encoded[name].astype(np.int64, copy=False)) for name in names}

    def same_as(self, other: TextEncoder) -> bool:
        """Return whether both give the same tokens for every caption."""
        return (self.max_length, self.lower_case) == (other.max_length, other.lower_case) and (
            self.tokenizer is other.tokenizer
            or tokenizer_definition(self.tokenizer) == tokenizer_definition(other.tokenizer)
        )

    def __repr__(self) -> str:
        case = ", lower_case" if self.lower_case else ""
        return f"{type(self.tokenizer).__name__}(max_length={self.max_length}{case})"


def choose_caption(value: Any, seed: int, epoch: int, example_id: int) -> str:
    """Choose one of the captions of a row that are not empty, at random but reproducibly.

    Args:
        value (`str` or iterable of `str`): The row's value in the caption column.
        seed (`int`): Seed of the draw.
        epoch (`int`): Epoch, from 0.
        example_id (`int`): Index of the row in the data set.

    Returns:
        `str`: The caption, unchanged. The same arguments always give the same caption.

    Raises:
        BrokenCaption: If no caption is left, or one is not a string.

    Example:

    ```python
    >>> from jest_hf.data.captions import choose_caption
    >>> choose_caption("a red circle", seed=0, epoch=0, example_id=7)
    'a red circle'
    >>> choose_caption(["", "a red circle", None], seed=0, epoch=0, example_id=7)
    'a red circle'

    ```
    """
    usable = usable_captions(value)
    return usable[draw_caption(len(usable), seed, epoch, example_id)]


def draw_caption(n: int, seed: int, epoch: int, example_id: int) -> int:
    """Draw the number of one of n captions, from 0, as a function of `(seed, epoch, example_id)`."""
    digest = hashlib.blake2b(f"{seed},{epoch},{example_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % n


def usable_captions(value: Any) -> list[str]:
    """Return the captions that are not empty.

    Raises:
        BrokenCaption: If no caption is left, or one is not a string, or not Unicode.
    """
    is_one = value is None or isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
    captions: list[Any] = [value] if is_one else list(value)
    wrong = next((caption for caption in captions if caption is not None and not isinstance(caption, str)), None)
    if wrong is not None:
        raise BrokenCaption(f"its caption is a {type(wrong).__name__}, not a string")
    if (wrong := next(filter(None, map(not_unicode, filter(None, captions))), None)) is not None:
        raise BrokenCaption(f"its caption {wrong}")
    usable = [caption for caption in captions if caption is not None and caption.strip()]
    if not usable:
        raise BrokenCaption("its caption is empty")
    return usable


def not_unicode(text: str) -> str | None:
    """Return what is wrong with a string that no tokenizer can read; `None` for any other."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"has half a character ({ascii(text[error.start])})"
    return None


def tokenizer_definition(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """Return all settings that decide the output of a tokenizer at a given length."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # "padding" and "truncation" are those of the last call.
        model = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    else:
        model = tokenizer.get_vocab()
    sides = (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token_id)
    return type(tokenizer), tokenizer.model_input_names, sides, model


def text_length(tokenizer: PreTrainedTokenizerBase, name: str, max_length: int | None) -> int:
    """Return the length that texts are padded to, in tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        name (`str`): Owner of the tokenizer, for error messages.
        max_length (`int`, *optional*): The length; by default the tokenizer's limit, or 64 if the limit is above 1024.

    Raises:
        ValueError: If `max_length` is no whole number of at least 1, or above the tokenizer's limit.
    """
    limit = tokenizer.model_max_length
    if max_length is None:
        return limit if limit <= MAX_SANE_LENGTH else DEFAULT_LENGTH
    if not isinstance(max_length, numbers.Integral) or max_length < 1:
        raise ValueError(
            f"max_length={max_length!r} must be a whole number of at least 1; leave max_length out for the "
            "tokenizer's limit."
        )
    if max_length > limit:
        raise ValueError(
            f"max_length={max_length} exceeds the limit of {limit} tokens of the tokenizer of {name}; set max_length "
            f"to {limit} or less."
        )
    return max_length


def text_encoder(tokenizer: PreTrainedTokenizerBase, owner: str, max_length: int | None) -> TextEncoder:
    """Return the text encoder of a tokenizer, as [`text_length`]; raise `ValueError` if it has no `pad_token`."""
    if tokenizer.pad_token is None:
        raise ValueError(
            f"The tokenizer of {owner} has no pad_token, which padding texts to one length needs; set "
            "tokenizer.pad_token, for instance to its eos_token."
        )
    return TextEncoder(tokenizer, text_length(tokenizer, owner, max_length), lower_case=False)
