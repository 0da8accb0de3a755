# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The string keys of rows (`__key__` of webdataset) in a super-batch, where every value is a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


KEY_COLUMN = "__key__"
ROW_KEY = "row_key"  # in a super-batch
KEY_BYTES = 64  # eight int64: a longer key keeps its end, in which keys differ


def has_keys(dataset: Any) -> bool:
    """Return whether the rows of a data set may have string keys: a stream may not know its columns."""
    columns = getattr(dataset, "column_names", ())
    return columns is None or KEY_COLUMN in columns


class KeyedCollator:
    """A collator whose super-batches hold the keys of their rows too: `row_key`, uint8 `[n, 64]`, UTF-8.

    Args:
        collator (`Callable`): Makes a super-batch of rows.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.data.keys import KeyedCollator, read_keys
    >>> batch = KeyedCollator(lambda rows: {})([{"__key__": "00000/cat"}, {}])
    >>> list(batch["row_key"].shape), read_keys(batch["row_key"])
    ([2, 64], ['00000/cat', None])

    ```
    """

    def __init__(self, collator: Callable[[Any], dict[str, Tensor]]) -> None:
        self.collator = collator

    def __call__(self, rows: Any) -> dict[str, Tensor]:
        keys = [str(row.get(KEY_COLUMN) or "").encode()[-KEY_BYTES:].ljust(KEY_BYTES, b"\0") for row in rows]
        values = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), KEY_BYTES)
        return {**self.collator(rows), ROW_KEY: torch.from_numpy(values.copy())}


def read_keys(values: Tensor) -> list[str | None]:
    """Return the keys in uint8 `[n, 64]` on the CPU; `None` where a row has none."""
    texts = (row.tobytes().rstrip(b"\0").decode(errors="replace") for row in values.numpy())
    return [text or None for text in texts]


__all__ = ["KEY_BYTES", "KEY_COLUMN", "ROW_KEY", "KeyedCollator", "has_keys", "read_keys"]
