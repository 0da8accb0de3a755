# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Labels of the built-in scenes, and synthetic noise."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from jest_hf.data import load_scenes
from jest_hf.data.rows import EpochSampler
from jest_hf.data.scenes import COLOURS, SHAPES, SIZES
from jest_hf.data.tasks import TASKS, class_names, flip_labels, label_scenes, scene_of, scramble_texts


@pytest.fixture(scope="module")
def curated():
    return load_scenes("curated", 200)


def test_a_scene_is_what_its_meaning_says(curated):
    assert {len(scene_of(meaning).things) for meaning in curated["group"]} == {1, 2, 3}
    for meaning in curated["group"]:
        assert scene_of(meaning).meaning == meaning


def test_labels_are_what_the_captions_say(curated):
    """The caption of a scene with one thing has one word for each attribute."""
    alone = [len(scene_of(meaning).things) == 1 for meaning in curated["group"]]
    for task, words in (("shape", SHAPES), ("colour", [one for one, _ in COLOURS]), ("count", [["a "]] * 3)):
        labelled = label_scenes(curated, task)
        for caption, label, is_alone in zip(labelled["caption"], labelled["label"], alone, strict=True):
            assert (label == 0) == is_alone if task == "count" else True
            if is_alone:
                assert any(word in caption for word in words[label])
    sizes = [word for words, _ in SIZES for word in words]
    counts = label_scenes(curated, "count")
    for caption, label in zip(counts["caption"], counts["label"], strict=True):
        assert sum(word in sizes for word in caption.split()) == label + 1
    assert labelled.features["label"].names == TASKS["count"][0]


def test_labels_that_cannot_be_read_off(curated):
    with pytest.raises(ValueError, match="task='size' is not known; choose one of shape, "):
        label_scenes(curated, "size")
    with pytest.raises(ValueError, match="task='shape' needs built-in scenes"):
        label_scenes(curated.remove_columns("group"), "shape")


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_flipped_labels_are_of_another_class_each_as_likely(names):
    labels = [i % 3 for i in range(3000)]
    if names is None:
        rows = datasets.Dataset.from_dict({"label": labels})
    else:
        rows = datasets.Dataset.from_dict({"label": [names[label] for label in labels]})
    noisy = flip_labels(rows, 0.4, seed=3)
    assert noisy.features["label"] == rows.features["label"]
    wrong = np.array([a != b for a, b in zip(rows["label"], noisy["label"], strict=True)])
    assert wrong.sum() == 1200 and np.array_equal(wrong, np.array(noisy["label_noise"]) == "wrong")
    pairs = list(zip(rows["label"], noisy["label"], strict=True))
    for right in rows.unique("label"):
        for other in set(rows.unique("label")) - {right}:
            assert 150 < pairs.count((right, other)) < 250
    assert flip_labels(rows, 0.4, seed=3)["label"][:] == noisy["label"][:] != flip_labels(rows, 0.4, 4)["label"][:]


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([0, 1, 2, -1, 1], None),
        ([0, 1, 2, -1, 1], datasets.ClassLabel(num_classes=3)),
        (["a", "b", "c", None, "b"], None),
        ([0.0, 1.0, 2.0, None, 1.0], None),
    ],
)
def test_rows_without_a_label_get_none(labels, feature):
    features = datasets.Features({"label": feature}) if feature else None
    rows = datasets.Dataset.from_dict({"label": labels * 100}, features=features)
    noisy = flip_labels(rows, 0.5, seed=0)
    wrong = [row for row, kind in enumerate(noisy["label_noise"]) if kind == "wrong"]
    assert len(wrong) == 200 and all(row % 5 != 3 for row in wrong)
    for row, (before, after) in enumerate(zip(rows["label"], noisy["label"], strict=True)):
        assert (before != after) == (row in wrong) and (after in labels)
        assert row % 5 != 3 or after == labels[3]
    assert class_names(rows, "label") == (["a", "b", "c"] if labels[0] == "a" else ["0", "1", "2"])


def test_only_texts_that_changed_are_scrambled():
    texts = ["a", "b c", "d e f", None, "", "g g"] * 50
    noisy = scramble_texts(datasets.Dataset.from_dict({"text": texts}), 1.0, 0)
    changed = [before != after for before, after in zip(texts, noisy["text"], strict=True)]
    assert changed == [kind == "scrambled" for kind in noisy["text_noise"]]
    assert changed == [text in ("b c", "d e f") for text in texts]


@pytest.mark.parametrize("make", [flip_labels, scramble_texts])
def test_noise_has_nothing_to_do_with_the_order_of_an_epoch(make):
    rows = datasets.Dataset.from_dict({"label": [0, 1] * 1000, "text": ["a b c d"] * 2000})
    noisy = make(rows, 0.4, 5)
    kinds = np.array(noisy[noisy.column_names[-1]])
    early = [index for _, index in EpochSampler(2000, 5)][:500]
    assert 0.3 < np.isin(kinds[early], ["wrong", "scrambled"]).mean() < 0.5


def test_scrambled_texts_have_the_same_words(curated):
    noisy = scramble_texts(curated, 0.5, 0, "caption")
    scrambled = np.array(noisy["text_noise"]) == "scrambled"
    assert scrambled.sum() == 100
    changed = [before != after for before, after in zip(curated["caption"], noisy["caption"], strict=True)]
    assert not any(np.array(changed)[~scrambled]) and np.mean(np.array(changed)[scrambled]) > 0.95
    for before, after in zip(curated["caption"], noisy["caption"], strict=True):
        assert sorted(before.split()) == sorted(after.split())


def test_noise_that_cannot_be_made():
    rows = datasets.Dataset.from_dict({"label": ["a", "a"], "text": ["a", "b"]})
    with pytest.raises(ValueError, match=r"share=1.5 must lie in \[0, 1\]"):
        scramble_texts(rows, 1.5, 0)
    with pytest.raises(ValueError, match="column='label' has labels of 1 class"):
        flip_labels(rows, 0.5, 0)
