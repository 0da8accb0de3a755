# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Sources of the training rows (such as a kind of noise), whose selection rates are logged. Selection ignores them."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor


MOST_SOURCES = 100


class Sources:
    """The source of every training row.

    Args:
        names (list of `str`): Names of the sources.
        of_row (`torch.Tensor`): Source of each row, int64 `[n_rows]`, an index of `names`.

    Example:

    ```python
    >>> import datasets
    >>> import torch
    >>> from jest_hf.report.sources import Sources
    >>> rows = datasets.Dataset.from_dict({"noise": ["clean", "web", "web"]})
    >>> sources = Sources.read(rows, column="noise")
    >>> sources.names, sources.count(torch.tensor([0, 1, 2]))
    (['clean', 'web'], tensor([1, 2]))

    ```
    """

    def __init__(self, names: list[str], of_row: Tensor) -> None:
        self.names = names
        self.of_row = of_row

    @classmethod
    def read(cls, dataset: Any, column: str) -> Sources:
        """Read the sources from a column of a data set.

        Raises:
            ValueError: If `dataset` is not a `datasets.Dataset`, has no such column, or the column has more than 100
                different values.
        """
        if not isinstance(dataset, datasets.Dataset) or column not in dataset.column_names:
            there = ", ".join(dataset.column_names) if isinstance(dataset, datasets.Dataset) else "no columns"
            raise ValueError(
                f"source_column={column!r} must be a column of train_dataset, a datasets.Dataset (there are: {there})"
                "; name one of these, or leave source_column out."
            )
        values = np.array([str(value) for value in dataset.with_format(None)[column]])
        names, of_row = np.unique(values, return_inverse=True)
        if len(names) > MOST_SOURCES:
            raise ValueError(
                f"source_column={column!r} has {len(names)} different values, and at most {MOST_SOURCES} are logged; "
                "name a column with fewer values, such as a kind of noise."
            )
        return cls(names.tolist(), torch.from_numpy(of_row.reshape(-1)))

    def of(self, example_ids: Tensor) -> Tensor:
        """Return the sources of some rows, int64, on the CPU."""
        return self.of_row[example_ids.cpu()]

    def count(self, example_ids: Tensor) -> Tensor:
        """Count how many of some rows come from each source, int64 `[n_sources]`, on the CPU."""
        return self.of(example_ids).bincount(minlength=len(self.names))


__all__ = ["Sources"]
