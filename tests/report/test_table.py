# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Tables, character by character."""

from __future__ import annotations

import pytest

from jest_hf.report import format_table


def test_alignment_and_numbers():
    table = format_table(["run", "examples", "R@5"], [["IID", 1234567, 0.123456], ["JEST | f=.8", 99, None]])
    assert table.splitlines() == [
        "| run          |  examples |    R@5 |",
        "| ------------ | --------: | -----: |",
        "| IID          | 1,234,567 | 0.1235 |",
        "| JEST \\| f=.8 |        99 |        |",
    ]


def test_no_rows_and_narrow_columns():
    assert format_table(["a"], []).splitlines() == ["| a   |", "| --- |"]


def test_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="1 cells, but there are 2 headers"):
        format_table(["a", "b"], [["x"]])
