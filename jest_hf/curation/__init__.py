# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Score a data set, and curate a smaller one: by scores or a run's selections, or by filters (JEST++)."""

from __future__ import annotations

from jest_hf.curation.by_scores import Curated, curate_dataset
from jest_hf.curation.choose import Rule
from jest_hf.curation.filters import CurationFilters, FilterResult, curate
from jest_hf.curation.measure import caption_column_of, join, measure_alignment, measure_captions, measure_images
from jest_hf.curation.run_report import RunReport, run_report
from jest_hf.curation.score_set import ScoreSet, open_scores
from jest_hf.curation.scoring import score_dataset


__all__ = [
    "Curated",
    "CurationFilters",
    "FilterResult",
    "Rule",
    "RunReport",
    "ScoreSet",
    "caption_column_of",
    "curate",
    "curate_dataset",
    "join",
    "measure_alignment",
    "measure_captions",
    "measure_images",
    "open_scores",
    "run_report",
    "score_dataset",
]
