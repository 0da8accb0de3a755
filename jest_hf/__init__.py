# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""JEST (joint example selection, arXiv 2406.17711) for the Hugging Face stack.

The public names load on first use, so that `jest_hf.selection` and the other low rooms cost no import of the Trainer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from jest_hf.config import JESTConfig
    from jest_hf.curation import curate_dataset, score_dataset
    from jest_hf.data.collator import JESTDataCollator
    from jest_hf.trainer import JESTTrainer

__version__ = "0.1.0.dev0"

_HOMES = {
    "JESTConfig": "jest_hf.config",
    "JESTDataCollator": "jest_hf.data.collator",
    "JESTTrainer": "jest_hf.trainer",
    "curate_dataset": "jest_hf.curation",
    "score_dataset": "jest_hf.curation",
}

__all__ = ["JESTConfig", "JESTDataCollator", "JESTTrainer", "curate_dataset", "score_dataset"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jest_hf' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
