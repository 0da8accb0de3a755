# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Model cards: what the Hub shows of a run."""

from __future__ import annotations

from jest_hf.hub.model_card import RunSummary, learner_card


__all__ = ["RunSummary", "learner_card"]
