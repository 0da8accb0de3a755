# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Curate a small data set from a large noisy one, for instance to train a reference on (JEST++)."""

from __future__ import annotations

from jest_hf.curation.filters import CurationFilters, FilterResult, curate
from jest_hf.curation.measure import caption_column_of, join, measure_alignment, measure_captions, measure_images
from jest_hf.curation.run_report import RunReport, run_report


__all__ = [
    "CurationFilters",
    "FilterResult",
    "RunReport",
    "caption_column_of",
    "curate",
    "join",
    "measure_alignment",
    "measure_captions",
    "measure_images",
    "run_report",
]
