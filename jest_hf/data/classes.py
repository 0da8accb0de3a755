# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Classes of a model, and the labels of the rows of a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from torch import Tensor
from transformers import PretrainedConfig


class BrokenExample(ValueError):
    """A text or a label that cannot be used. The message gives the reason."""


class SeveralLabels(BrokenExample):
    """A row with several labels. Where all rows have several, `label_column` is the wrong column."""


class Classes:
    """The classes of a model: reads the labels of rows as class numbers.

    Args:
        label2id (`dict[str, int]`): Number of each class by name, from the model's configuration.
        column (`str`): Column of the labels.

    Example:

    ```python
    >>> from jest_hf.data.classes import Classes
    >>> classes = Classes({"cat": 0, "dog": 1}, column="label")
    >>> classes.number({"label": "dog"}), classes.number({"label": 0})
    (1, 0)

    ```
    """

    def __init__(self, label2id: Mapping[str, int], column: str) -> None:
        self.label2id = dict(label2id)
        self.known = frozenset(self.label2id.values())
        self.column = column

    def number(self, row: Mapping[str, Any]) -> int:
        """Return the number of a row's class.

        Raises:
            SeveralLabels: If the row has several labels.
            BrokenExample: If the row has no label, or the model has no such class.
        """
        label = self._plain(row.get(self.column))
        if label is None:
            raise BrokenExample("it has no label")
        number = self._number(label)
        if number is None:
            raise BrokenExample(f"its label {label!r} is none of the model's {len(self.label2id)} classes")
        return number

    def check(self, dataset: Any, needed: bool = True) -> None:
        """Check all labels of a `datasets.Dataset`, reading no other column.

        Other data sets (streams, lists) are not checked: their rows with a wrong label are skipped during training.

        Args:
            dataset: The data.
            needed (`bool`, *optional*, defaults to `True`): Whether labels are required.

        Raises:
            ValueError: If the model has no such class, a row has several labels, the class names of the data set have
                other numbers than in the model, or labels are needed and there are none.
        """
        if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
            return
        if self.column not in dataset.column_names:
            if not needed:
                return
            raise ValueError(
                f"label_column={self.column!r} is not a column of the data set (there are: "
                f"{', '.join(dataset.column_names)}); set label_column to the column of the labels."
            )
        self._check_names(dataset.features[self.column])
        column = dataset.with_format(None).select_columns([self.column])[:][self.column]
        labels = {self._plain(label) for label in column} - {None}
        if needed and not labels:
            raise ValueError(
                f"label_column={self.column!r} has no label in any row; set label_column to the column of the labels."
            )
        unknown = sorted(repr(label) for label in labels if self._number(label) is None)
        if unknown:
            raise ValueError(
                f"column {self.column!r} has the label {unknown[0]}, which is none of the model's "
                f"{len(self.label2id)} classes; build the model with the num_labels and label2id of the data."
            )

    def _check_names(self, feature: Any) -> None:
        names = feature.names if isinstance(feature, datasets.ClassLabel) else []
        for number, name in enumerate(names):
            if self.label2id.get(name, number) != number:
                raise ValueError(
                    f"class {name!r} has the number {number} in the data set and {self.label2id[name]} in the model; "
                    "renumber the classes with dataset.align_labels_with_mapping(model.config.label2id, "
                    f"{self.column!r})."
                )

    def _plain(self, label: Any) -> Any:
        label = plain_label(label)
        if isinstance(label, list | tuple | dict | set | np.ndarray | Tensor):
            raise SeveralLabels(
                f"column {self.column!r} holds a {type(label).__name__} of labels (multi-label), but only one label "
                "for each row is supported; set label_column to a column with one label for each row."
            )
        return label

    def _number(self, label: Any) -> int | None:
        if isinstance(label, str):
            return self.label2id.get(label)
        return label if label in self.known else None


def label2id_of(config: PretrainedConfig) -> dict[str, int]:
    """Return the number of each class by name, also from a configuration that has `id2label` only."""
    if config.label2id is not None:
        return {name: int(number) for name, number in config.label2id.items()}
    return {name: int(number) for number, name in (config.id2label or {}).items()}


def plain_label(label: Any) -> Any:
    """Convert a label to a plain `int` or `str`, or to `None` for a missing label.

    Scalars of numpy and torch, booleans and whole floats (from a CSV column with gaps) become class numbers. `None`,
    NaN and -1 (for `datasets`, a row without a label) become `None`. Any other value is returned unchanged.

    Example:

    ```python
    >>> from jest_hf.data.classes import plain_label
    >>> [plain_label(label) for label in (3.0, True, "dog", -1, float("nan"))]
    [3, 1, 'dog', None, None]

    ```
    """
    if isinstance(label, np.generic | np.ndarray | Tensor) and label.ndim == 0:
        label = label.item()
    if isinstance(label, float) and math.isnan(label):
        return None
    if isinstance(label, bool) or (isinstance(label, float) and label.is_integer()):
        label = int(label)
    return None if isinstance(label, int) and label == -1 else label


__all__ = ["BrokenExample", "Classes", "SeveralLabels", "label2id_of", "plain_label"]
