# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind for its reader: the ledger of selections, the FLOPs it cost, its plots and tables."""

from __future__ import annotations

from jest_hf.report.flops import StepFlops, forward_flops, step_flops
from jest_hf.report.ledger import SelectionLedger, read_selections
from jest_hf.report.metrics import RunStatistics, compare_selected
from jest_hf.report.plots import QualityPoint, first_reaching, plot_quality, plot_selection
from jest_hf.report.table import format_table


__all__ = [
    "QualityPoint",
    "RunStatistics",
    "SelectionLedger",
    "StepFlops",
    "compare_selected",
    "first_reaching",
    "format_table",
    "forward_flops",
    "plot_quality",
    "plot_selection",
    "read_selections",
    "step_flops",
]
