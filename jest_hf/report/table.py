# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Markdown tables with aligned columns, which are readable in a terminal too."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a Markdown table with aligned columns; columns of numbers are aligned to the right.

    Args:
        headers (sequence of `str`):
            Names of the columns.
        rows (sequence of sequences):
            The cells. Integers get thousands separators, other numbers four significant digits, and `None` an empty
            cell. A text is put into one line.

    Returns:
        `str`: The table, without a newline at its end.

    Raises:
        ValueError: If a row has more or fewer cells than there are headers.

    Example:

    ```python
    >>> from jest_hf.report import format_table
    >>> print(format_table(["run", "examples"], [["IID", 24000], ["JEST", 4800]]))
    | run  | examples |
    | ---- | -------: |
    | IID  |   24,000 |
    | JEST |    4,800 |

    ```
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(
                f"row {list(row)!r} has {len(row)} cells, but there are {len(headers)} headers; pass one cell for "
                "each header."
            )
    cells = [[_text(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *cells, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]  # Markdown needs three dashes
    numeric = [any(_is_number(row[i]) for row in rows) for i in range(len(headers))]

    def line(texts: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([line(headers), line(rule), *map(line, cells)])


def _is_number(cell: object) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return " ".join(str(cell).splitlines()).replace("|", "\\|")
