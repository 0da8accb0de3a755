# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Retrieval recall against a sort of the full score matrix, and on cases with known results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from jest_hf.evaluation import retrieval_recall


def literal_recall(queries, gallery, query_groups, gallery_groups, k):
    """Sort the items for each query, wrong ones first among equals, and count the right ones among the first k."""
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    hits = 0
    for query, group in zip(queries, query_groups, strict=True):
        scores = np.round(gallery @ query, 5)
        right = gallery_groups == group
        order = np.lexsort((right, -scores))
        hits += right[order[:k]].any()
    return hits / len(queries)


def literal_recalls(image, text, image_groups, text_groups, ks):
    result = {}
    for k in ks:
        to_text = literal_recall(image, text, image_groups, text_groups, k)
        to_image = literal_recall(text, image, text_groups, image_groups, k)
        result |= {
            f"image_to_text_R@{k}": to_text,
            f"text_to_image_R@{k}": to_image,
            f"R@{k}": (to_text + to_image) / 2,
        }
    return result


def lattice(rng, n, dim):
    """Embeddings with few distinct values: equal scores are frequent, unequal ones differ by far more than 1e-5."""
    values = rng.integers(-1, 2, size=(n, dim)).astype(np.float64)
    values[:, 0] = 1
    return values


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    counts=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    groups=st.integers(1, 8),
    tile_size=st.integers(1, 30),
)
def test_equals_a_full_sort_with_groups_and_ties(seed, counts, groups, tile_size):
    rng = np.random.default_rng(seed)
    groups = min(groups, *counts)
    image, text = (lattice(rng, n, 4) for n in counts)
    image_groups, text_groups = (
        rng.permutation(np.r_[:groups, rng.integers(groups, size=n - groups)]) for n in counts
    )
    ks = (1, 2, 5, 40)
    result = retrieval_recall(image, text, image_groups, text_groups, ks=ks, tile_size=tile_size)
    assert result == pytest.approx(literal_recalls(image, text, image_groups, text_groups, ks))


@pytest.mark.parametrize("tile_size", [1, 7, 64, 150, 1000])
def test_tile_size_does_not_matter(tile_size):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((150, 16))
    text = image + rng.standard_normal((150, 16))
    result = retrieval_recall(image, text, tile_size=tile_size)
    assert result == pytest.approx(literal_recalls(image, text, np.arange(150), np.arange(150), (1, 5, 10)))
    assert 0.1 < result["R@1"] < result["R@5"] < result["R@10"] < 1


def test_several_captions_per_image():
    image = torch.eye(2)
    text = torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])  # the second caption of image 0 looks like image 1
    result = retrieval_recall(image, text, text_groups=[0, 0, 1], ks=(1, 2, 3))
    assert result["image_to_text_R@1"] == 0.5
    assert result["image_to_text_R@2"] == 1.0
    assert result["text_to_image_R@1"] == pytest.approx(2 / 3)
    assert result["R@1"] == pytest.approx((0.5 + 2 / 3) / 2)


def test_images_that_share_a_caption():
    image = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    text = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.0, 1.0]])
    assert retrieval_recall(image, text, ks=(1,))["image_to_text_R@1"] == pytest.approx(1 / 3)
    assert retrieval_recall(image, text, [0, 0, 1], [0, 0, 1], ks=(1,))["R@1"] == 1.0


@pytest.mark.parametrize("n", [2, 33, 100])
@pytest.mark.parametrize("dim", [3, 768])
def test_collapsed_embeddings_score_nothing(n, dim):
    constant = torch.randn(1, dim, generator=torch.Generator().manual_seed(0)).expand(n, dim)
    assert retrieval_recall(constant, constant, ks=(1,), tile_size=7)["R@1"] == 0
    assert retrieval_recall(torch.zeros(n, dim), torch.zeros(n, dim), ks=(1,))["R@1"] == 0


@pytest.mark.parametrize(("offset", "recall"), [(1e-3, 0.0), (1e-2, 1.0)])  # cosines 1 - 5e-7 and 1 - 5e-5
def test_differences_of_rounding_size_are_ties(offset, recall):
    pair = torch.tensor([[1.0, 0.0], [1.0, offset]])
    assert retrieval_recall(pair, pair, ks=(1,))["R@1"] == recall


def test_duplicates_of_another_group_count_against_the_query():
    image = torch.eye(4)
    text = torch.eye(4)[[0, 1, 2, 2]]
    assert retrieval_recall(image, text, ks=(1, 2))["image_to_text_R@1"] == 0.5
    assert retrieval_recall(image, text, ks=(1, 2))["image_to_text_R@2"] == 0.75


def test_never_the_whole_matrix():
    class LargestTensor(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes = [x.numel() for x in tree_iter(result) if isinstance(x, torch.Tensor)]
            self.numel = max(self.numel, *sizes, 0)
            return result

    image, text = torch.randn(2, 200, 4)
    with LargestTensor() as largest:
        retrieval_recall(image, text, tile_size=9)
    assert largest.numel == 9 * 200


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.double, lambda x: 7 * x])
def test_input_types_and_norms(convert):
    image, text = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0))
    assert retrieval_recall(convert(image), convert(text)) == retrieval_recall(image, text)


def test_autocast_and_gradients_change_nothing():
    image = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    text = image + torch.randn(300, 16, generator=torch.Generator().manual_seed(1))
    expected = retrieval_recall(image, text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert retrieval_recall(image, text) == expected


def nan_row(n=4):
    image = torch.eye(n)
    image[1, 2] = torch.nan
    return image


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": nan_row()}, "1 of 4 rows of image hold NaN"),
        ({"text": nan_row() * torch.inf}, "rows of text hold NaN"),
        ({"text": torch.eye(5)[:, :4]}, "4 images and 5 texts are not pairs"),
        ({"text": torch.ones(4, 5)}, "widths 4 and 5"),
        ({"image": torch.ones(4)}, "image must be a matrix"),
        ({"image": torch.ones(0, 4), "text": torch.ones(0, 4)}, "image must be a matrix"),
        ({"text_groups": [0, 1, 2]}, r"text_groups must be one integer per embedding, of shape \[4\]"),
        ({"text_groups": [0.0, 1.0, 2.0, 3.0]}, "text_groups must be integers"),
        ({"text_groups": [0, 1, 2, 2]}, "1 of 4 image rows have no counterpart"),
        ({"text_groups": [0, 1, 2, 9], "image_groups": [0, 1, 2, 2]}, "1 of 4 text rows have no counterpart"),
        ({"ks": (0, 1)}, "ks=.* must be positive"),
        ({"ks": ()}, "ks=.* must be positive"),
        ({"tile_size": 0}, "tile_size=0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_recall(**{"image": torch.eye(4), "text": torch.eye(4), **arguments})
