# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind for its reader: the ledger of selections, the FLOPs it cost, its plots and tables."""

from __future__ import annotations

from .flops import StepFlops, forward_flops, step_flops
from .ledger import SelectionLedger, read_selections
from .metrics import RunStatistics, compare_selected
from .plots import QualityPoint, first_reaching, plot_quality
from .table import format_table


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
    "read_selections",
    "step_flops",
]
