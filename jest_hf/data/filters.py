# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The old place of the filters; see `jest_hf.curation`."""

from __future__ import annotations

from jest_hf.moved import moved


_NAMES = ("CurationFilters", "FilterResult", "caption_column_of", "curate", "join")
_NAMES += ("measure_alignment", "measure_captions", "measure_images")

__getattr__ = moved(__name__, dict.fromkeys(_NAMES, "jest_hf.curation"))
