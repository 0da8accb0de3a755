# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Views of images: their names, the models that they fit, and the images that they make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from jest_hf import JESTDataCollator
from jest_hf.models import View, check_view
from tests.helpers import random_image, random_rows, tiny_siglip2, tiny_siglip2_processor
from tests.models.viewed import CASES, small_clip, small_siglip, small_siglip2


# ---- Names ----


@pytest.mark.parametrize("text", ["patch:32", "image:112", "num_patches:64", "drop:0.5"])
def test_a_view_is_named_as_it_is_written(text):
    view = View.parse(text)
    assert str(view) == text and View.parse(str(view)) == view and len({view, View.parse(text)}) == 1
    assert f"{view.kind}:{view.value}" == text


@pytest.mark.parametrize(
    "text, message",
    [
        ("resolution:32", "view 'resolution:32' is of no known kind; use a view like patch:32"),
        ("patch", "view 'patch' cannot be read; use a view like patch:32"),
        ("patch:", "cannot be read"),
        ("patch:-8", "cannot be read"),
        ("patch:8x8", "cannot be read"),
        ("patch:0", "view 'patch:0': 0 must be a whole number of at least 1, as in patch:32"),
        ("image:112.5", "112.5 must be a whole number"),
        ("drop:0", "0 must be a fraction between 0 and 1, as in drop:0.5"),
        ("drop:1", "1 must be a fraction between 0 and 1"),
        ("drop:1.5", "1.5 must be a fraction"),
    ],
)
def test_what_is_no_view(text, message):
    with pytest.raises(ValueError, match=message):
        View.parse(text)


@pytest.mark.parametrize(
    "build, text, message",
    [
        (small_siglip, "patch:12", r"choose patches larger than the model's \(8\) that divide its image size \(32\)"),
        (small_siglip, "patch:8", "choose patches larger"),
        (small_siglip, "patch:4", "choose patches larger"),
        (small_siglip, "image:20", r"choose images smaller than the model's \(32\), a multiple of its patches \(8\)"),
        (small_siglip, "image:32", "choose images smaller"),
        (small_siglip, "drop:0.99", "choose a fraction that drops some of the 16 patches, not all"),
        (small_siglip, "drop:0.01", "choose a fraction that drops some of the 16 patches, not all"),
        (small_siglip, "num_patches:4", "does not suit a siglip model: use patch, image or drop"),
        (small_clip, "num_patches:4", "does not suit a clip model: use patch, image or drop"),
        (small_siglip2, "patch:8", "does not suit a siglip2 model: use num_patches"),
        (small_siglip2, "drop:0.5", "does not suit a siglip2 model: use num_patches"),
    ],
)
def test_views_that_do_not_suit_the_model(build, text, message):
    with pytest.raises(ValueError, match=f"view '{text}'.*{message}"):
        check_view(View.parse(text), build().config)


@pytest.mark.parametrize("build, text", CASES)
def test_views_that_do(build, text):
    check_view(View.parse(text), build().config)


# ---- Images ----


def test_a_small_image_is_what_pil_makes_of_the_large_one():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()).float()[None]
    found = View.parse("image:16").images({"pixel_values": pixels}, small_siglip().config.vision_config)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(found["pixel_values"][0].numpy() - expected).max() <= 1.01  # PIL rounds twice


@pytest.mark.parametrize("text, size", [("image:16", 16), ("num_patches:6", None)])
def test_images_of_the_size_of_the_view_are_left_alone(text, size):
    if size:
        images, config = {"pixel_values": torch.randn(2, 3, size, size)}, small_siglip().config
    else:
        config = small_siglip2().config
        batch = JESTDataCollator(tiny_siglip2_processor(max_num_patches=6))(random_rows(2))
        images = {name: batch[name] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")}
    found = View.parse(text).images(images, config.vision_config)
    assert all(found[name] is value for name, value in images.items())


@pytest.mark.parametrize("text", ["patch:16", "image:16", "drop:0.5"])
@pytest.mark.parametrize("shape", [(24, 24), (32, 24), (64, 64)])
def test_images_of_a_foreign_size_are_refused(text, shape):
    with pytest.raises(ValueError, match=f"made from images of 32 x 32 pixels, got {shape[0]} x {shape[1]}"):
        View.parse(text).images({"pixel_values": torch.zeros(1, 3, *shape)}, small_siglip().config.vision_config)


def test_naflex_images_are_reduced_as_their_processor_would():
    """Images reassembled from patches, one at a time; the processor would start from the larger original."""
    processor, small = tiny_siglip2_processor(max_num_patches=64), tiny_siglip2_processor(max_num_patches=12)
    rows = [*random_rows(2, size=32), *random_rows(1, size=40, seed=1)]
    rows.append({"image": random_image(16, 64, np.random.default_rng(2)), "text": "a red star"})
    batch, expected = JESTDataCollator(processor)(rows), JESTDataCollator(small)(rows)
    batch["pixel_values"] = batch["pixel_values"].float()
    found = View.parse("num_patches:12").images(batch, tiny_siglip2().config.vision_config)
    assert found["pixel_values"].shape == expected["pixel_values"].shape
    for name in ("pixel_attention_mask", "spatial_shapes"):
        assert torch.equal(found[name], expected[name]), name
    mask = expected["pixel_attention_mask"].bool()
    difference = (found["pixel_values"] - expected["pixel_values"].float())[mask].abs()
    assert len(found["spatial_shapes"].unique(dim=0)) == 2
    assert difference.mean() < 3 and difference.max() < 40
    with pytest.raises(ValueError, match="view 'num_patches:65' has more patches than the 64"):
        View.parse("num_patches:65").images(batch, tiny_siglip2().config.vision_config)


def test_half_of_the_patches_is_a_chequerboard():
    images = {"pixel_values": torch.zeros(1, 3, 32, 32)}
    kept = View.parse("drop:0.5").images(images, small_siglip().config.vision_config)["kept_patches"]
    board = torch.zeros(16, dtype=torch.int64).index_fill(0, kept, 1).view(4, 4)
    assert torch.equal(board, (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0)


@pytest.mark.parametrize("share, n_kept", [("0.1", 14), ("0.25", 12), ("0.9", 2)])
def test_dropping_keeps_the_share_that_was_asked_for(share, n_kept):
    images = {"pixel_values": torch.zeros(1, 3, 32, 32)}
    kept = View.parse(f"drop:{share}").images(images, small_siglip().config.vision_config)["kept_patches"]
    assert len(kept.unique()) == len(kept) == n_kept and kept.min() >= 0 and kept.max() < 16
