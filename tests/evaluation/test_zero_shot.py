# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Zero-shot classification against literal loops, and on cases with known results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from jest_hf.evaluation import DEFAULT_TEMPLATES, zero_shot_accuracy, zero_shot_classifier


def encode_text(prompts):
    """Return unnormalised embeddings that depend on the prompt only."""
    return torch.stack(
        [torch.randn(6, generator=torch.Generator().manual_seed(sum(map(ord, p)))) * len(p) for p in prompts]
    )


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_classifier_equals_the_loop(batch_size):
    names = ["cat", "red {square}", "dog"]
    result = zero_shot_classifier(encode_text, names, batch_size=batch_size)
    assert result.shape == (3, 6)
    for row, name in zip(result, names, strict=True):
        prompts = [template.replace("{}", name) for template in DEFAULT_TEMPLATES]
        mean = sum(F.normalize(encode_text([prompt])[0], dim=0) for prompt in prompts) / len(prompts)
        torch.testing.assert_close(row, mean / mean.norm())


def test_classifier_batches_its_prompts():
    sizes = []

    def encode(prompts):
        sizes.append(len(prompts))
        return encode_text(prompts)

    zero_shot_classifier(encode, ["a", "b", "c"], templates=["{}", "x {}"], batch_size=4)
    assert sizes == [4, 2]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), classes=st.integers(1, 12), tile_size=st.integers(1, 50))
def test_accuracy_equals_a_full_sort(seed, n, classes, tile_size):
    rng = np.random.default_rng(seed)
    image, class_embeds = rng.integers(-1, 2, (n, 3)) + [2.0, 0, 0], rng.integers(-1, 2, (classes, 3)) + [2.0, 0, 0]
    labels = rng.integers(classes, size=n)
    scores = image @ class_embeds.T / np.linalg.norm(image, axis=1)[:, None] / np.linalg.norm(class_embeds, axis=1)
    hits = {1: [], 3: []}
    for row, label in zip(np.round(scores, 5), labels, strict=True):
        order = np.lexsort((np.arange(classes) == label, -row))  # the right class last among equals
        for k in hits:
            hits[k].append(label in order[:k])
    expected = {f"accuracy@{k}": np.mean(hits[k]) for k in hits}
    expected["mean_per_class_accuracy"] = np.mean(
        [np.mean([h for h, y in zip(hits[1], labels, strict=True) if y == label]) for label in set(labels.tolist())]
    )
    result = zero_shot_accuracy(image, class_embeds, labels, ks=(1, 3), tile_size=tile_size)
    assert result == pytest.approx(expected)


def test_mean_per_class_weighs_classes_alike():
    image = torch.eye(3)[[0, 0, 0, 0]]
    result = zero_shot_accuracy(image, torch.eye(3), [0, 0, 0, 1])
    assert result == {"accuracy@1": 0.75, "accuracy@5": 1.0, "mean_per_class_accuracy": 0.5}


def test_classes_that_cannot_be_told_apart_are_wrong():
    assert zero_shot_accuracy(torch.eye(2), torch.ones(2, 2), [0, 1], ks=(1,))["accuracy@1"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_names": []}, "0 class_names and 2 templates"),
        ({"class_names": "cat"}, "single string"),
        ({"templates": []}, "2 class_names and 0 templates"),
        ({"templates": ["a photo"]}, "'a photo' must contain {} once"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"encode_text": lambda prompts: torch.ones(len(prompts) + 1, 4)}, "5 rows for 4 prompts"),
        ({"encode_text": lambda prompts: torch.full((len(prompts), 4), torch.nan)}, "hold NaN"),
    ],
)
def test_wrong_classifier_arguments_are_named(arguments, message):
    good = {"encode_text": encode_text, "class_names": ["cat", "dog"], "templates": ["{}", "a {}"]}
    with pytest.raises(ValueError, match=message):
        zero_shot_classifier(**{**good, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 1, 3]}, "labels must lie between 0 and 2, but go from 0 to 3"),
        ({"labels": [0, 1, -100]}, "go from -100 to 1"),
        ({"labels": [0, 1]}, "labels must be one integer per embedding"),
        ({"class_embeds": torch.eye(4)}, "widths 3 and 4"),
        ({"image": torch.full((3, 3), torch.nan)}, "3 of 3 rows of image hold NaN"),
        ({"ks": (0,)}, "ks=.* must be positive"),
        ({"tile_size": 0}, "tile_size=0 must be at least 1"),
    ],
)
def test_wrong_accuracy_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        zero_shot_accuracy(**{"image": torch.eye(3), "class_embeds": torch.eye(3), "labels": [0, 1, 2], **arguments})
