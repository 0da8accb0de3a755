# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Making a small curated data set of a large noisy one, such as the training data of a reference (JEST++)."""

from __future__ import annotations

from jest_hf.curation.filters import (
    CurationFilters,
    FilterResult,
    caption_column_of,
    curate,
    join,
    measure_alignment,
    measure_captions,
    measure_images,
)


__all__ = [
    "CurationFilters",
    "FilterResult",
    "caption_column_of",
    "curate",
    "join",
    "measure_alignment",
    "measure_captions",
    "measure_images",
]
