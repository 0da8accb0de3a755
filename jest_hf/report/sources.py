# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Where training rows come from (a source, a kind of noise), to say how often each is selected. It decides nothing."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor


MOST_SOURCES = 100


class Sources:
    """
    The source of every row.

    Args:
        names (list of `str`): The sources.
        of_row (`torch.Tensor`): int64 `[n_rows]`, numbers into `names`.
    """

    def __init__(self, names: list[str], of_row: Tensor) -> None:
        self.names = names
        self.of_row = of_row

    @classmethod
    def read(cls, dataset: Any, column: str) -> Sources:
        """
        The values of a column as sources.

        Raises:
            ValueError: if there is no such column, more than 100 values in it, or no way to read it by index.
        """
        if not isinstance(dataset, datasets.Dataset) or column not in dataset.column_names:
            there = ", ".join(dataset.column_names) if isinstance(dataset, datasets.Dataset) else "no columns"
            raise ValueError(
                f"source_column={column!r} must be a column of train_dataset, a datasets.Dataset (there are: {there});"
                " name one of these, or leave source_column out."
            )
        values = np.array([str(value) for value in dataset.with_format(None)[column]])
        names, of_row = np.unique(values, return_inverse=True)
        if len(names) > MOST_SOURCES:
            raise ValueError(
                f"source_column={column!r} has {len(names)} different values, and {MOST_SOURCES} can be told apart in "
                "a log; name a column with fewer, such as a source or a kind of noise."
            )
        return cls(names.tolist(), torch.from_numpy(of_row.reshape(-1)))

    def of(self, example_ids: Tensor) -> Tensor:
        """The sources of some rows, int64, on the CPU."""
        return self.of_row[example_ids.cpu()]

    def count(self, example_ids: Tensor) -> Tensor:
        """How many of some rows come from each source, int64 `[n_sources]`, on the CPU."""
        return self.of(example_ids).bincount(minlength=len(self.names))


__all__ = ["Sources"]
