# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The Hub: models pulled and verified, pushes that never end a run, and the cards that say what a run was."""

from __future__ import annotations

from jest_hf.hub.model_card import RunSummary, learner_card
from jest_hf.hub.pull import Snapshot, pull_model
from jest_hf.hub.push import SafePushes


__all__ = ["RunSummary", "SafePushes", "Snapshot", "learner_card", "pull_model"]
