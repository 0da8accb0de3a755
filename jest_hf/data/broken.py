# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows that could not even be read: they are skipped and counted like those with a corrupt image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jest_hf.images.reading import BrokenImage


BROKEN = "__broken__"  # the column of the reason, in a row of a stream


class BrokenRow(dict[str, Any]):
    """A row that could not be read. It has any column, and the value of each is the reason, a `BrokenImage`.

    Args:
        reason (`str`): Why the row could not be read.
        values: What is known of the row, such as `example_id`.

    Example:

    ```python
    >>> from jest_hf.data.broken import BrokenRow
    >>> row = BrokenRow("it was not there", example_id=3)
    >>> row["example_id"], row["image"]
    (3, BrokenImage('it was not there'))

    ```
    """

    def __init__(self, reason: str, **values: Any) -> None:
        super().__init__(**values)
        self.reason = reason

    def __missing__(self, column: str) -> BrokenImage:
        return BrokenImage(self.reason)

    def __contains__(self, column: object) -> bool:
        return True

    def __reduce__(self) -> Any:
        return _made_again, (self.reason, dict(self))


def _made_again(reason: str, values: dict[str, Any]) -> BrokenRow:
    return BrokenRow(reason, **values)


def readable(row: Mapping[str, Any], columns: Iterable[str]) -> Mapping[str, Any]:
    """Return a row; raise `BrokenImage` with the reason if it could not be read, or lacks a column."""
    if isinstance(row, BrokenRow):
        raise BrokenImage(row.reason)
    for column in columns:
        if column not in row:
            raise BrokenImage(f"the row has no column {column!r}, which other rows have")
    return row


def reason_of(error: Exception) -> str:
    """Return what to say of an error that reading a row has raised, on one line."""
    if isinstance(error, BrokenImage):
        return str(error)
    text = str(error).encode("utf-8", "backslashreplace").decode("utf-8")  # half characters cannot be logged
    return f"the row cannot be read ({type(error).__name__}: {' '.join(text.split())[:200]})"


__all__ = ["BROKEN", "BrokenRow", "readable", "reason_of"]
