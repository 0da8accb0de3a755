# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Score a data set, and curate a smaller one: by scores or a run's selections, or by filters (JEST++)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from jest_hf.curation.by_scores import Curated, curate_dataset
    from jest_hf.curation.choose import Rule
    from jest_hf.curation.filters import CurationFilters, FilterResult, curate
    from jest_hf.curation.measure import caption_column_of, join, measure_alignment, measure_captions, measure_images
    from jest_hf.curation.report_on_run import RunReport, run_report
    from jest_hf.curation.score_set import ScoreSet, open_scores
    from jest_hf.curation.scoring import score_dataset

# The names load on first use, so that `jest-hf <command> --help` imports no torch. No name is also that of a
# file here: the import of the file would hide it.
_HOMES = {
    **dict.fromkeys(("Curated", "curate_dataset"), "jest_hf.curation.by_scores"),
    **dict.fromkeys(("Rule",), "jest_hf.curation.choose"),
    **dict.fromkeys(("CurationFilters", "FilterResult", "curate"), "jest_hf.curation.filters"),
    **dict.fromkeys(
        ("caption_column_of", "join", "measure_alignment", "measure_captions", "measure_images"),
        "jest_hf.curation.measure",
    ),
    **dict.fromkeys(("RunReport", "run_report"), "jest_hf.curation.report_on_run"),
    **dict.fromkeys(("ScoreSet", "open_scores"), "jest_hf.curation.score_set"),
    **dict.fromkeys(("score_dataset",), "jest_hf.curation.scoring"),
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
