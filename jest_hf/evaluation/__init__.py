# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Retrieval and zero-shot classification: pure functions of embeddings, `evaluate` metrics and a callback.

No function here loads a model or uses the network. The functions need torch only. The classes are imported at first
use, since the metrics import `evaluate`, and the callback imports the collator.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jest_hf.evaluation.retrieval import retrieval_recall
from jest_hf.evaluation.zero_shot import DEFAULT_TEMPLATES, zero_shot_accuracy, zero_shot_classifier


if TYPE_CHECKING:
    from jest_hf.evaluation.callback import ZeroShotCallback
    from jest_hf.evaluation.metrics import RetrievalMetric, ZeroShotMetric

_MODULES = {"RetrievalMetric": ".metrics", "ZeroShotCallback": ".callback", "ZeroShotMetric": ".metrics"}

__all__ = [
    "DEFAULT_TEMPLATES",
    "RetrievalMetric",
    "ZeroShotCallback",
    "ZeroShotMetric",
    "retrieval_recall",
    "zero_shot_accuracy",
    "zero_shot_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name], __name__), name)
