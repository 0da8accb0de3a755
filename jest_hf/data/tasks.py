# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Tasks with labels: those of the built-in scenes, names of classes, and noise made by seed (labels, texts).

The label of a scene is that of its picture, which is always right. Its caption need not be: on `scenes:web` six of ten
texts have another picture's label, or none that could be read off them, without any noise being made.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np

from jest_hf.data.classes import plain_label
from jest_hf.data.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing


# The first thing is the left or the upper one, whichever word order a caption has.
TASKS: dict[str, tuple[list[str], Callable[[Scene], int]]] = {
    "shape": ([words[0] for words in SHAPES], lambda scene: scene.things[0].shape),
    "colour": ([words[0] for words, _ in COLOURS], lambda scene: scene.things[0].colour),
    "count": (["one", "two", "three"], lambda scene: len(scene.things) - 1),
}
LABEL_NOISE, TEXT_NOISE = "label_noise", "text_noise"


def scene_of(meaning: int) -> Scene:
    """The scene that has this [`~jest_hf.data.scenes.Scene.meaning`]: the column `group` of the built-in data set."""
    things, n_things = [], 0
    head = meaning
    while head // (2 * len(BACKGROUNDS)) != n_things:  # what is left once n things are taken off begins with n
        head, size, colour, shape = _digits(head, len(SIZES), len(COLOURS), len(SHAPES))
        things.append(Thing(size, colour, shape))
        n_things += 1
    _, background, arrangement = _digits(head, len(BACKGROUNDS), 2)
    return Scene(background, arrangement, tuple(reversed(things)))


def _digits(number: int, *bases: int) -> tuple[int, ...]:
    """What is in front of the last digits, and these, in a number of mixed radix."""
    digits = []
    for base in reversed(bases):
        number, digit = divmod(number, base)
        digits.append(digit)
    return number, *reversed(digits)


def label_scenes(rows: datasets.Dataset, task: str) -> datasets.Dataset:
    """
    Built-in scenes with a column `label` of what the picture shows.

    Args:
        rows (`datasets.Dataset`): Of [`~jest_hf.data.load_scenes`].
        task (`str`): `"shape"` or `"colour"` of the first (left, upper) thing, eight classes each, or `"count"`.

    Raises:
        ValueError: for an unknown task, or rows that are no scenes.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is not known; choose one of {', '.join(TASKS)}.")
    if "group" not in rows.column_names:
        raise ValueError(f"task={task!r} reads labels off the built-in scenes, and these rows are not; leave it out.")
    names, label = TASKS[task]
    labels = [label(scene_of(meaning)) for meaning in rows["group"]]
    feature = datasets.Features({"label": datasets.ClassLabel(names=names)})
    return datasets.concatenate_datasets([rows, datasets.Dataset.from_dict({"label": labels}, feature)], axis=1)


def class_names(rows: datasets.Dataset, column: str) -> list[str]:
    """
    What the labels of a data set are called, in the order of their numbers.

    Raises:
        ValueError: if it has no such column.
    """
    if column not in rows.column_names:
        raise ValueError(
            f"the data have no column {column!r} (there are: {', '.join(rows.column_names)}); name the column of the "
            "labels with label_column."
        )
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    labels = {plain_label(label) for label in rows.unique(column)} - {None}
    if all(isinstance(label, str) for label in labels):
        return sorted(labels)
    return [str(number) for number in range(max(labels) + 1)]


def flip_labels(rows: datasets.Dataset, share: float, seed: int, column: str = "label") -> datasets.Dataset:
    """
    Symmetric label noise: `share` of the rows with a label, drawn by `seed`, get that of another class, each as
    likely. What has no label (see [`plain_label`]) stays without.

    The column `label_noise` says which: `"wrong"`, or `"right"` for the rest; it measures a selector and never enters
    training.

    Raises:
        ValueError: for a share outside of [0, 1], or labels of fewer than two classes.
    """
    labels = rows[column][:]
    classes = _classes(rows, column)
    if len(classes) < 2:
        raise ValueError(f"column {column!r} has {len(classes)} class, and a wrong label needs a second one.")
    rng = _generator(seed, "labels")
    wrong = _some([row for row, label in enumerate(labels) if plain_label(label) is not None], share, rng)
    place = {name: number for number, name in enumerate(classes)}
    for row, shift in zip(wrong, rng.integers(1, len(classes), len(wrong)), strict=True):
        labels[row] = classes[(place[labels[row]] + shift) % len(classes)]
    return _replace(rows, column, labels, LABEL_NOISE, wrong, ("right", "wrong"))


def scramble_texts(rows: datasets.Dataset, share: float, seed: int, column: str = "text") -> datasets.Dataset:
    """
    `share` of the texts, drawn by `seed` among those with two different words, with their words in another order, at
    random: as common as before, and hard to predict.

    The column `text_noise` says which: `"scrambled"`, or `"intact"` for the rest.

    Raises:
        ValueError: for a share outside of [0, 1].
    """
    texts = rows[column][:]
    rng = _generator(seed, "texts")
    scrambled = _some([row for row, text in enumerate(texts) if text and len(set(text.split())) > 1], share, rng)
    for row in scrambled:
        before = texts[row].split()
        words = rng.permutation(before).tolist()
        texts[row] = " ".join(words if words != before else before[1:] + before[:1])
    return _replace(rows, column, texts, TEXT_NOISE, scrambled, ("intact", "scrambled"))


def _generator(seed: int, what: str) -> np.random.Generator:
    # Never from the seed alone: to numpy that is the seed of the sampler's first epoch, [seed, 0], which would put all
    # of the noise at its beginning.
    return np.random.default_rng([seed, zlib.crc32(what.encode())])


def _classes(rows: datasets.Dataset, column: str) -> list[int | str]:
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(range(feature.num_classes))
    return [label for label in rows.unique(column) if plain_label(label) is not None]


def _some(rows: list[int], share: float, rng: np.random.Generator) -> list[int]:
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share={share} of the rows must be in [0, 1].")
    return [rows[place] for place in rng.permutation(len(rows))[: round(share * len(rows))]]


def _replace(
    rows: datasets.Dataset, column: str, values: list[Any], key: str, altered: list[int], words: tuple[str, str]
) -> datasets.Dataset:
    """The rows with other values in a column, and the answer key of what was altered in a new one."""
    is_altered = np.isin(np.arange(len(rows)), altered)
    columns = datasets.Dataset.from_dict(
        {column: values, key: np.where(is_altered, words[1], words[0])},
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
