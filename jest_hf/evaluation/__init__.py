# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Retrieval and zero-shot classification: pure functions of embeddings, and the same as `evaluate` metrics.

Nothing here loads a model or needs the network. The functions need torch only; the metric classes are imported when
first asked for, because `evaluate` is an optional dependency.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .retrieval import retrieval_recall
from .zero_shot import DEFAULT_TEMPLATES, zero_shot_accuracy, zero_shot_classifier


if TYPE_CHECKING:
    from .metrics import RetrievalMetric, ZeroShotMetric

__all__ = [
    "DEFAULT_TEMPLATES",
    "RetrievalMetric",
    "ZeroShotMetric",
    "retrieval_recall",
    "zero_shot_accuracy",
    "zero_shot_classifier",
]


def __getattr__(name: str) -> Any:
    if name in ("RetrievalMetric", "ZeroShotMetric"):
        from . import metrics

        return getattr(metrics, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
