# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Reports of a run: the ledger of selections, counts, FLOPs, figures of a selection, plots, tables and own reports."""

from __future__ import annotations

from jest_hf.report.compare import batch_loss, compare_selected, compare_selectors, source_shares
from jest_hf.report.counting import forward_flops, forward_flops_of
from jest_hf.report.flops import StepFlops, step_flops
from jest_hf.report.ledger import SelectionLedger, read_rejected, read_selections
from jest_hf.report.plots import QualityPoint, first_reaching, plot_quality, plot_selection
from jest_hf.report.report import Report, StepRecord
from jest_hf.report.statistics import RunStatistics
from jest_hf.report.summary import RunSummary
from jest_hf.report.table import format_table


__all__ = [
    "QualityPoint",
    "Report",
    "RunStatistics",
    "RunSummary",
    "SelectionLedger",
    "StepFlops",
    "StepRecord",
    "batch_loss",
    "compare_selected",
    "compare_selectors",
    "first_reaching",
    "format_table",
    "forward_flops",
    "forward_flops_of",
    "plot_quality",
    "plot_selection",
    "read_rejected",
    "read_selections",
    "source_shares",
    "step_flops",
]
