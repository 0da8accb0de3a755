# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Labelled tasks: labels of the built-in scenes, class names, and synthetic noise in labels and texts.

The label of a scene comes from its picture and is always right. On `scenes:web` the captions of six in ten rows belong
to another picture or describe none, so labels cannot be predicted from them, even without synthetic noise.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np

from jest_hf.data.classes import plain_label
from jest_hf.data.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing


# The first thing is the left or the upper one, for every word order of a caption.
TASKS: dict[str, tuple[list[str], Callable[[Scene], int]]] = {
    "shape": ([words[0] for words in SHAPES], lambda scene: scene.things[0].shape),
    "colour": ([words[0] for words, _ in COLOURS], lambda scene: scene.things[0].colour),
    "count": (["one", "two", "three"], lambda scene: len(scene.things) - 1),
}
LABEL_NOISE, TEXT_NOISE = "label_noise", "text_noise"


def scene_of(meaning: int) -> Scene:
    """Return the scene of a [`~jest_hf.data.scenes.Scene.meaning`] (column `group` of the built-in data set)."""
    things, n_things = [], 0
    head = meaning
    while head // (2 * len(BACKGROUNDS)) != n_things:  # without the digits of its n things, a meaning begins with n
        head, size, colour, shape = _digits(head, len(SIZES), len(COLOURS), len(SHAPES))
        things.append(Thing(size, colour, shape))
        n_things += 1
    _, background, arrangement = _digits(head, len(BACKGROUNDS), 2)
    return Scene(background, arrangement, tuple(reversed(things)))


def _digits(number: int, *bases: int) -> tuple[int, ...]:
    """Split off the last digits of a number of mixed radix; the rest comes first in the result."""
    digits = []
    for base in reversed(bases):
        number, digit = divmod(number, base)
        digits.append(digit)
    return number, *reversed(digits)


def label_scenes(rows: datasets.Dataset, task: str) -> datasets.Dataset:
    """Add a column `label` to built-in scenes, from the content of the picture.

    Args:
        rows (`datasets.Dataset`): Rows of [`~jest_hf.data.load_scenes`].
        task (`str`): `"shape"` or `"colour"` of the first (left, upper) thing, eight classes each, or `"count"`, the
            number of things minus one.

    Raises:
        ValueError: For an unknown task, or rows that are not built-in scenes.

    Example:

    ```python
    >>> from jest_hf.data import load_scenes
    >>> from jest_hf.data.tasks import class_names, label_scenes
    >>> rows = label_scenes(load_scenes("curated", n=3), "colour")
    >>> [class_names(rows, "label")[label] for label in rows["label"]]
    ['purple', 'orange', 'orange']

    ```
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is not known; choose one of {', '.join(TASKS)}.")
    if "group" not in rows.column_names:
        raise ValueError(f"task={task!r} needs built-in scenes, and these rows are none; leave task out.")
    names, label = TASKS[task]
    labels = [label(scene_of(meaning)) for meaning in rows["group"]]
    feature = datasets.Features({"label": datasets.ClassLabel(names=names)})
    return datasets.concatenate_datasets([rows, datasets.Dataset.from_dict({"label": labels}, feature)], axis=1)


def class_names(rows: datasets.Dataset, column: str) -> list[str]:
    """Return the names of the classes of a data set, in the order of their numbers.

    Raises:
        ValueError: If the data set has no such column.
    """
    if column not in rows.column_names:
        raise ValueError(
            f"label_column={column!r} is not a column of the data (there are: {', '.join(rows.column_names)}); set "
            "label_column to the column of the labels."
        )
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    labels = {plain_label(label) for label in rows.unique(column)} - {None}
    if all(isinstance(label, str) for label in labels):
        return sorted(labels)
    return [str(number) for number in range(max(labels) + 1)]


def flip_labels(rows: datasets.Dataset, share: float, seed: int, column: str = "label") -> datasets.Dataset:
    """Give some rows a wrong label: symmetric label noise.

    A new column `label_noise` holds `"wrong"` or `"right"`, to measure a selector with, never to train on. Rows
    without a label (see [`plain_label`]) are left as they are.

    Args:
        rows (`datasets.Dataset`): The data.
        share (`float`): Share of the rows with a label that get a wrong one, in [0, 1]. Each other class is equally
            likely.
        seed (`int`): Seed of the rows and of their labels.
        column (`str`, *optional*, defaults to `"label"`): Column of the labels.

    Raises:
        ValueError: For a share outside of [0, 1], or labels of fewer than two classes.

    Example:

    ```python
    >>> import datasets
    >>> from jest_hf.data.tasks import flip_labels
    >>> rows = datasets.Dataset.from_dict({"label": ["cat", "dog", "cat", "dog"]})
    >>> sorted(flip_labels(rows, share=0.25, seed=0)["label_noise"])
    ['right', 'right', 'right', 'wrong']

    ```
    """
    labels = rows[column][:]
    classes = _classes(rows, column)
    if len(classes) < 2:
        raise ValueError(
            f"column={column!r} has labels of {len(classes)} class, and a wrong label needs a second class; pass data "
            "of at least two classes."
        )
    rng = _generator(seed, "labels")
    wrong = _draw_rows([row for row, label in enumerate(labels) if plain_label(label) is not None], share, rng)
    place = {name: number for number, name in enumerate(classes)}
    for row, shift in zip(wrong, rng.integers(1, len(classes), len(wrong)), strict=True):
        labels[row] = classes[(place[labels[row]] + shift) % len(classes)]
    return _replace(rows, column, labels, LABEL_NOISE, wrong, ("right", "wrong"))


def scramble_texts(rows: datasets.Dataset, share: float, seed: int, column: str = "text") -> datasets.Dataset:
    """Put the words of some texts in a random order: word frequencies stay, but the text is hard to predict.

    A new column `text_noise` holds `"scrambled"` or `"intact"`, to measure a selector with, never to train on.

    Args:
        rows (`datasets.Dataset`): The data.
        share (`float`): Share of the texts with at least two different words that are scrambled, in [0, 1].
        seed (`int`): Seed of the texts and of their word orders.
        column (`str`, *optional*, defaults to `"text"`): Column of the texts.

    Raises:
        ValueError: For a share outside of [0, 1].
    """
    texts = rows[column][:]
    rng = _generator(seed, "texts")
    scrambled = _draw_rows([row for row, text in enumerate(texts) if text and len(set(text.split())) > 1], share, rng)
    for row in scrambled:
        before = texts[row].split()
        words = rng.permutation(before).tolist()
        texts[row] = " ".join(words if words != before else before[1:] + before[:1])
    return _replace(rows, column, texts, TEXT_NOISE, scrambled, ("intact", "scrambled"))


def _generator(seed: int, what: str) -> np.random.Generator:
    # Not from the seed alone, which is for numpy the same as [seed, 0], the seed of the sampler's first epoch: all
    # noisy rows would come at the beginning of that epoch.
    return np.random.default_rng([seed, zlib.crc32(what.encode())])


def _classes(rows: datasets.Dataset, column: str) -> list[int | str]:
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(range(feature.num_classes))
    return [label for label in rows.unique(column) if plain_label(label) is not None]


def _draw_rows(rows: list[int], share: float, rng: np.random.Generator) -> list[int]:
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share={share} must lie in [0, 1]; pass a share of the rows, such as 0.2.")
    return [rows[place] for place in rng.permutation(len(rows))[: round(share * len(rows))]]


def _replace(
    rows: datasets.Dataset, column: str, values: list[Any], key: str, altered: list[int], marks: tuple[str, str]
) -> datasets.Dataset:
    """Replace a column, and add a column `key` of `marks[1]` for altered rows and `marks[0]` for the others."""
    is_altered = np.isin(np.arange(len(rows)), altered)
    columns = datasets.Dataset.from_dict(
        {column: values, key: np.where(is_altered, marks[1], marks[0])},
        features=datasets.Features({column: rows.features[column], key: datasets.Value("string")}),
    )
    return datasets.concatenate_datasets([rows.remove_columns(column), columns], axis=1)


__all__ = [
    "LABEL_NOISE",
    "TASKS",
    "TEXT_NOISE",
    "class_names",
    "flip_labels",
    "label_scenes",
    "scene_of",
    "scramble_texts",
]
