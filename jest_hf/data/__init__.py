# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Data: the built-in data set, data from disk or from the Hub, and a tokenizer and processor trained on captions."""

from jest_hf.data.processor import build_processor
from jest_hf.data.scenes import load_scenes
from jest_hf.data.sources import load_source
from jest_hf.data.subset import select_subset
from jest_hf.data.tokenizer import train_tokenizer


__all__ = ["build_processor", "load_scenes", "load_source", "select_subset", "train_tokenizer"]
