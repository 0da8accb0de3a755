# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The collator at a view: pixels equal to those of a smaller processor, with or without the full images."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from jest_hf.data.collator import JESTDataCollator
from jest_hf.images.resizing import MOST_LEVELS
from jest_hf.models import View
from tests.data.test_collator import GOOD, mixed_rows
from tests.helpers import encode, random_image, tiny_clip_processor, tiny_siglip2_processor, tiny_siglip_processor


@pytest.mark.parametrize(
    ("processor", "view", "smaller"),
    [
        (tiny_siglip_processor(16), "image:8", tiny_siglip_processor(8)),
        (tiny_clip_processor(16), "image:8", tiny_clip_processor(8)),
        (tiny_siglip2_processor(), "num_patches:6", tiny_siglip2_processor(max_num_patches=6)),
    ],
)
def test_images_at_a_view_are_those_of_a_smaller_processor(processor, view, smaller):
    rows = mixed_rows()
    plain = JESTDataCollator(processor, tiny_siglip_processor(24))
    collator = plain.at_view(View.parse(view))
    batch, full, small = collator(rows), plain(rows), JESTDataCollator(smaller)(rows)
    images = {name for name in small if "pixel" in name or "spatial" in name}
    assert batch.keys() - full.keys() == {"view_" + name for name in images}
    assert all(torch.equal(batch[name], full[name]) for name in full)
    assert all(torch.equal(batch["view_" + name], small[name]) for name in images)
    alone = collator.view_alone()(rows)
    assert alone.keys() == {name for name in batch if not name.startswith("ref_")} - images
    assert all(torch.equal(alone[name], batch[name]) for name in alone)


def test_a_crop_is_scaled_with_the_image():
    processor = tiny_clip_processor(16)
    processor.image_processor.size = {"shortest_edge": 20}
    collator = JESTDataCollator(processor).at_view(View.parse("image:8"))
    processor.image_processor.size = {"shortest_edge": 10}
    processor.image_processor.crop_size = {"height": 8, "width": 8}
    expected = JESTDataCollator(processor)(mixed_rows())["pixel_values"]
    assert torch.equal(collator(mixed_rows())["view_pixel_values"], expected)


@pytest.mark.parametrize("view", [None, View.parse("patch:16"), View.parse("drop:0.5")])
def test_views_that_are_made_of_full_images_change_nothing(view):
    collator = JESTDataCollator(tiny_siglip_processor())
    assert collator.at_view(view) is collator


def test_a_view_alone_is_decoded_small_with_scaled_jpeg_decoding():
    """Together with the full image a JPEG is decoded at full size, and the view is resized from it."""
    file = encode(random_image(64, 64, np.random.default_rng(0)), "JPEG")
    collator = JESTDataCollator(tiny_siglip_processor(32), scaled_jpeg_decoding=True).at_view(View.parse("image:8"))
    both, alone = (
        one([{**GOOD, "image": file}])["view_pixel_values"].int() for one in (collator, collator.view_alone())
    )
    exact = JESTDataCollator(tiny_siglip_processor(32)).at_view(View.parse("image:8"))
    one, other = (made([{**GOOD, "image": file}])["view_pixel_values"] for made in (exact, exact.view_alone()))
    assert torch.equal(one, other)
    assert 0 < (both - alone).abs().max() < 32
    small = Image.open(io.BytesIO(file))
    small.draft(None, (8, 8))
    expected = np.asarray(small.resize((8, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(alone[0].numpy() - expected.astype(int)).max() <= MOST_LEVELS
