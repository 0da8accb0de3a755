# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The classes of a model, and what the rows of a data set call them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from torch import Tensor
from transformers import PretrainedConfig


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
        """
        The number of a row's class.

        Raises:
            BrokenExample: for a row without a label, and for a label that the model does not have.
            ValueError: for several labels.
        """
        label = self._plain(row.get(self.column))
        if label is None:
            raise BrokenExample("it has no label")
        number = self._number(label)
        if number is None:
            raise BrokenExample(f"its label {label!r} is none of the model's {len(self.label2id)} classes")
        return number

    def check(self, dataset: Any, needed: bool = True) -> None:
        """
        Look through the labels of a whole data set, where they can be read without the rest; of a stream or a list the
        rows with a wrong label are skipped as they come.

        Args:
            dataset: Rows.
            needed (`bool`, *optional*, defaults to `True`): Whether there have to be labels.

        Raises:
            ValueError: for a label that the model does not have, several labels of one row, a data set whose class
                names have other numbers than in the model, and one without a single label.
        """
        if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
            return
        if self.column not in dataset.column_names:
            if not needed:
                return
            raise ValueError(
                f"label_column={self.column!r} is not a column of the data set (there are: "
                f"{', '.join(dataset.column_names)}); name the column that holds the labels."
            )
        self._check_names(dataset.features[self.column])
        column = dataset.with_format(None).select_columns([self.column])[:][self.column]
        labels = {self._plain(label) for label in column} - {None}
        if needed and not labels:
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

    def _plain(self, label: Any) -> Any:
        label = plain_label(label)
        if isinstance(label, list | tuple | dict | np.ndarray | Tensor):
            raise ValueError(
                f"column {self.column!r} holds a {type(label).__name__} of labels (multi-label), and an example has "
                "one class here; name a column with label_column that holds one for each row."
            )
        return label

    def _number(self, label: Any) -> int | None:
        if isinstance(label, str):
            return self.label2id.get(label)
        return label if label in self.known else None


def label2id_of(config: PretrainedConfig) -> dict[str, int]:
    """The classes of a model, by name, of which a configuration may know one direction alone."""
    if config.label2id is not None:
        return {name: int(number) for name, number in config.label2id.items()}
    return {name: int(number) for number, name in (config.id2label or {}).items()}


def plain_label(label: Any) -> Any:
    """
    A label as a plain `int` or `str`, whatever it was stored as; `None` where there is none.

    Scalars of numpy and torch, booleans and whole floats (a CSV column with gaps) are numbers of classes. `None`, NaN
    and the -1 with which `datasets` marks a row without a label are none. Anything else is left as it is.
    """
    if isinstance(label, np.generic | np.ndarray | Tensor) and label.ndim == 0:
        label = label.item()
    if isinstance(label, float) and math.isnan(label):
        return None
    if isinstance(label, bool) or (isinstance(label, float) and label.is_integer()):
        label = int(label)
    return None if isinstance(label, int) and label == -1 else label


__all__ = ["BrokenExample", "Classes", "label2id_of", "plain_label"]
