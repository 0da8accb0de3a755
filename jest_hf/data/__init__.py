# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Data: the built-in data set, sources, tokenizer and processor."""

from .processor import build_processor
from .scenes import load_scenes
from .sources import load_source
from .tokenizer import train_tokenizer


__all__ = ["build_processor", "load_scenes", "load_source", "train_tokenizer"]
