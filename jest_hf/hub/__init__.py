# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The Hub: models pulled and verified, pushes that never end a run, and the cards that say what a run was."""

from __future__ import annotations

from jest_hf.hub.card_file import merge_card, push_card, write_card
from jest_hf.hub.dataset_cards import CuratedSummary, curated_card, reference_cache_card
from jest_hf.hub.model_card import learner_card, reference_card, run_card
from jest_hf.hub.publisher import Publisher
from jest_hf.hub.pull import Snapshot, pull_model
from jest_hf.report.summary import RunSummary


__all__ = [
    "CuratedSummary",
    "RunSummary",
    "Publisher",
    "Snapshot",
    "curated_card",
    "learner_card",
    "merge_card",
    "pull_model",
    "push_card",
    "reference_cache_card",
    "reference_card",
    "run_card",
    "write_card",
]
