# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The old place of the data collator; see `jest_hf.data.collator` and `jest_hf.data.captions`."""

from __future__ import annotations

from jest_hf.moved import moved


_CAPTIONS: tuple[str, ...] = (
    "CAPTION_COLUMNS",
    "BrokenCaption",
    "TextEncoder",
    "choose_caption",
    "draw_caption",
    "text_length",
)
_CAPTIONS += ("tokenizer_definition", "usable_captions")

__getattr__ = moved(
    __name__,
    {"JESTDataCollator": "jest_hf.data.collator", "REF_PREFIX": "jest_hf.batch"}
    | dict.fromkeys(_CAPTIONS, "jest_hf.data.captions"),
)
