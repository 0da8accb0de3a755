# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Why rows cannot be used: the reasons that a collator logs in a worker, for a message at the end."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from jest_hf.data.rows import Rows
from jest_hf.data.streamed_rows import is_stream


_TRIED, _SHOWN = 20, 3  # rows that are read again, and reasons that are shown


def reasons_of(collator: Any, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return why rows are skipped, a text for each row that is, such as `"example 7: there is no image (None)"`.

    Args:
        collator: A data collator of this package.
        rows (sequence of mappings): The rows, with `example_id`.

    Example:

    ```python
    >>> from jest_hf import JESTDataCollator
    >>> from jest_hf.data import build_processor
    >>> from jest_hf.data.reasons import reasons_of
    >>> collator = JESTDataCollator(build_processor(["a circle"], image_size=32, max_length=8))
    >>> reasons_of(collator, [{"image": None, "text": "a circle", "example_id": 7}])
    ['example 7: there is no image (None)']

    ```
    """
    found: list[str] = []
    listening = copy.copy(collator)
    listening._log_skip = lambda example_id, reason: found.append(f"example {int(example_id)}: {reason}")
    try:
        listening(rows)
    except ValueError as error:  # of columns: these rows lack one that others have
        found.append(str(error))
    return found


def first_reasons(rows: Any, collator: Any) -> str:
    """Return why the first rows cannot be used, for a message about all of them; `"see the log"` if that is not known.

    Args:
        rows ([`~jest_hf.data.rows.Rows`]): The data.
        collator: The data collator that skipped the rows, or what calls it as its `collator`.
    """
    collator = getattr(collator, "collator", collator)
    if not isinstance(rows, Rows) or not hasattr(collator, "_log_skip"):
        return "see the log"
    return "; ".join(reasons_of(collator, [rows[index] for index in range(min(_SHOWN, len(rows)))])) or "see the log"


def reasons_by_id(dataset: Any, collator: Any, ids: Tensor) -> list[str]:
    """As [`reasons_of`], of the rows with some ids (int64 `[n]`). The rows of a stream cannot be read again."""
    if is_stream(dataset):
        return []
    rows = Rows(dataset, collator.image_column)
    return reasons_of(collator, [rows[index] for index in ids.tolist()])


def mostly_broken(broken: int, total: int, collator: Any, rows: Rows | None) -> str | None:
    """Return what to say of rows of which more than half could not be used, with reasons; otherwise `None`.

    Args:
        broken (`int`): Number of rows that were skipped.
        total (`int`): Number of rows that were read.
        collator: The data collator that skipped them.
        rows ([`~jest_hf.data.rows.Rows`], *optional*): The data. Some rows are read again, for the reasons.
    """
    if 2 * broken <= total:
        return None
    reasons: list[str] = []
    if rows is not None:
        for index in range(0, len(rows), max(1, len(rows) // _TRIED)):
            if len(reasons) < _SHOWN:
                reasons += reasons_of(collator, [rows[index]])
    return f"{broken:,} of {total:,} cannot be used ({'; '.join(reasons) or 'see the log'})"


__all__ = ["first_reasons", "mostly_broken", "reasons_by_id", "reasons_of"]
