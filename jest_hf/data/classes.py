# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The classes of a model, and what the rows of a data set call them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import datasets


class BrokenExample(ValueError):
    """A text or a label that cannot be used; the message says why."""


class Classes:
    """
    Numbers and names of the classes of a model, and what the rows call them.

    Args:
        label2id (`dict[str, int]`): Of the model's configuration.
        column (`str`): Column of the labels.
    """

    def __init__(self, label2id: Mapping[str, int], column: str) -> None:
        self.label2id = dict(label2id)
        self.known = frozenset(self.label2id.values())
        self.column = column

    def number(self, row: Mapping[str, Any]) -> int:
        """The number of a row's class; `BrokenExample` where it has none."""
        label = row[self.column]
        if _is_missing(label):
            raise BrokenExample("it has no label")
        number = self._number(label)
        if number is None:
            raise BrokenExample(f"its label {label!r} is none of the model's {len(self.label2id)} classes")
        return number

    def check(self, dataset: Any) -> None:
        """
        Look through the labels of a whole data set, where they can be read without the rest; of a stream or a list the
        rows with a wrong label are skipped as they come.

        Raises:
            ValueError: for a label that the model does not have, a data set whose class names have other numbers than
                in the model, and one without a single label.
        """
        if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
            return
        if self.column not in dataset.column_names:
            raise ValueError(
                f"label_column={self.column!r} is not a column of the data set (there are: "
                f"{', '.join(dataset.column_names)}); name the column that holds the labels."
            )
        self._check_names(dataset.features[self.column])
        labels = set(dataset.with_format(None).select_columns([self.column])[:][self.column])
        labels = {label for label in labels if not _is_missing(label)}
        if not labels:
            raise ValueError(f"not one row has a label in column {self.column!r}; name the column that holds them.")
        strange = sorted(repr(label) for label in labels if self._number(label) is None)
        if strange:
            raise ValueError(
                f"column {self.column!r} has the label {strange[0]}, which is none of the model's "
                f"{len(self.label2id)} classes; build the model with num_labels (and label2id, for names) of the data."
            )

    def _check_names(self, feature: Any) -> None:
        names = feature.names if isinstance(feature, datasets.ClassLabel) else []
        for number, name in enumerate(names):
            if self.label2id.get(name, number) != number:
                raise ValueError(
                    f"class {name!r} has the number {number} in the data set and {self.label2id[name]} in the model; "
                    "bring them together with dataset.align_labels_with_mapping(model.config.label2id, "
                    f"{self.column!r})."
                )

    def _number(self, label: Any) -> int | None:
        if isinstance(label, str):
            return self.label2id.get(label)
        whole = isinstance(label, numbers.Integral) and not isinstance(label, bool)
        return int(label) if whole and int(label) in self.known else None


def _is_missing(label: Any) -> bool:
    """`None`, NaN, and the -1 with which `datasets` marks a row without a label."""
    if isinstance(label, float) and math.isnan(label):
        return True
    return label is None or (isinstance(label, numbers.Integral) and label == -1)


__all__ = ["BrokenExample", "Classes"]
