# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The cached reference: row i is example i, as if it were embedded in its super-batch."""

from __future__ import annotations

import pytest
import torch

from jest_hf import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.models import DualEncoder, expose_temperature
from jest_hf.reference import embed_rows
from tests.helpers import random_rows, tiny_clip_processor, tiny_siglip, tiny_siglip_processor


def embed(rows, collator, processor, batch_size=4, **options):
    model = tiny_siglip(1)
    expose_temperature(model)
    view = DualEncoder(model.config, processor, prefix="ref_")
    cached = embed_rows(view, model, Rows(rows), collator, batch_size, torch.device("cpu"), **options)
    return cached, view, model


@pytest.mark.parametrize("learner", [tiny_siglip_processor(), tiny_clip_processor(24)], ids=["shared", "own inputs"])
def test_row_i_is_example_i(learner):
    rows, processor = random_rows(11), tiny_siglip_processor()
    collator = JESTDataCollator(learner, processor)
    cached, view, model = embed(rows, collator, processor)
    assert cached.image.shape == cached.text.shape == (11, 32)
    assert cached.image.dtype == cached.text.dtype == torch.float32
    for index in (0, 5, 10):
        alone = view.embed(model, collator([rows[index]]), 1)
        torch.testing.assert_close(cached.image[index], alone.image[0])
        torch.testing.assert_close(cached.text[index], alone.text[0])
    assert cached.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert cached.logit_bias == pytest.approx(model.logit_bias.item())


def test_a_broken_row_keeps_its_place():
    rows, processor = random_rows(7), tiny_siglip_processor()
    whole, _, _ = embed(rows, JESTDataCollator(processor), processor)
    rows[2] = {**rows[2], "image": None}
    rows[3] = {**rows[3], "text": None}
    cached, _, _ = embed(rows, JESTDataCollator(processor), processor)
    assert len(cached.image) == 7 and cached.image.isfinite().all() and cached.text.isfinite().all()
    torch.testing.assert_close(cached.image[[0, 1, 4, 5, 6]], whole.image[[0, 1, 4, 5, 6]])
    torch.testing.assert_close(cached.text[[0, 1, 4, 5, 6]], whole.text[[0, 1, 4, 5, 6]])


def test_workers_change_nothing():
    rows, processor = random_rows(7), tiny_siglip_processor()
    one, _, _ = embed(rows, JESTDataCollator(processor), processor)
    other, _, _ = embed(rows, JESTDataCollator(processor), processor, num_workers=1)
    assert torch.equal(one.image, other.image) and torch.equal(one.text, other.text)


def test_several_captions_are_refused_by_row():
    rows, processor = random_rows(7), tiny_siglip_processor()
    rows[1]["text"] = ["a red star", ""]  # one usable caption: always the same
    embed(rows, JESTDataCollator(processor), processor)
    rows[5]["text"] = ["a red star", "a star"]
    with pytest.raises(ValueError, match="cache_reference=True, but row 5 has several captions"):
        embed(rows, JESTDataCollator(processor), processor)
