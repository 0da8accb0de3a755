# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""From rows to embeddings: all captions, groups, and rows that cannot be read."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from jest_hf import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.evaluation.pairs import CaptionCollator, embed_dataset
from jest_hf.losses import sigmoid_contrastive_loss
from jest_hf.models import DualEncoder, View, accept_views, expose_temperature
from tests.helpers import random_rows, tiny_clip, tiny_clip_processor, tiny_siglip, tiny_siglip_processor


def rows_with_captions(captions: list) -> list[dict]:
    return [{**row, "text": several} for row, several in zip(random_rows(len(captions)), captions, strict=True)]


CAPTIONS = [["a red star", "a star"], "a blue circle", ["", "a green square", None], "a white star"]


def test_every_caption_of_every_readable_row():
    rows = rows_with_captions([*CAPTIONS, "", "a star"])
    rows[3]["image"] = None
    processor = tiny_siglip_processor()
    batch = CaptionCollator(JESTDataCollator(processor))(Rows(rows).__getitems__(range(6)))
    captions = ["a red star", "a star", "a blue circle", "a green square", "a star"]
    expected = processor.tokenizer(captions, padding="max_length", max_length=8, return_tensors="pt")["input_ids"]
    assert torch.equal(batch["input_ids"], expected)
    assert batch["caption_of"].tolist() == [0, 0, 1, 2, 3]
    assert batch["groups"] == [0, 1, 2, 5]  # by default a row's own number in the data set
    assert batch["readable"].tolist() == [True, True, True, False, False, True]
    expected = JESTDataCollator(processor)([rows[index] for index in (0, 1, 2, 5)])["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)


def test_the_keys_are_the_learners_alone():
    """The batch has no keys of the reference or of the super-batch; CLIP's text mask has a row for each caption."""
    reference = tiny_siglip_processor(24, max_length=4)
    collator = CaptionCollator(JESTDataCollator(tiny_clip_processor(), reference))
    batch = collator(Rows(rows_with_captions(CAPTIONS)).__getitems__(range(4)))
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "caption_of", "groups", "readable"}
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 3, 4, 4, 4]


@pytest.mark.parametrize("rows", [[], [{"image": None, "text": "a star", "example_id": 3}]])
def test_a_batch_without_a_usable_row_can_still_go_through_a_model(rows):
    """Other ranks may make a forward, which is a collective under some engines."""
    model, processor = tiny_clip(0), tiny_clip_processor()
    expose_temperature(model)
    batch = CaptionCollator(JESTDataCollator(processor))(rows)
    assert (batch["groups"], batch["readable"].tolist(), len(batch["caption_of"])) == ([], [False] * len(rows), 0)
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    assert DualEncoder(model.config, processor)(model, tensors).text_embeds.shape == (1, 24)


def test_images_at_the_view_come_along():
    view, model, processor = View.parse("image:8"), tiny_siglip(0), tiny_siglip_processor()
    expose_temperature(model)
    accept_views(model)
    rows = random_rows(5, size=40)
    rows[1]["image"] = None
    collator = JESTDataCollator(processor).at_view(view)
    loader = DataLoader(Rows(rows), batch_size=2, collate_fn=CaptionCollator(collator))
    read = DualEncoder(model.config, processor)
    found = embed_dataset(partial(read, view=view), model, loader, torch.device("cpu"), "sigmoid")
    small = {name.removeprefix("view_"): value for name, value in collator.view_alone()(rows).items()}
    expected = read.score(model, {name: value[[0, 2, 3, 4]] for name, value in small.items()}, 4, view)
    torch.testing.assert_close(found.image, expected.image)
    full = embed_dataset(read, model, loader, torch.device("cpu"), "sigmoid")
    assert not torch.allclose(full.image, found.image, atol=1e-3)


def test_groups_are_the_values_of_the_column():
    rows = [
        {**row, "concept": name, "example_id": index}
        for index, (row, name) in enumerate(zip(rows_with_captions(CAPTIONS), ("x", "y", "x", None), strict=True))
    ]
    collator = JESTDataCollator(tiny_siglip_processor())
    assert CaptionCollator(collator, "concept")(rows)["groups"] == ["x", "y", "x", ("row", 3)]
    with pytest.raises(
        ValueError, match="eval_group_column='topic' is not a column .*there are: concept, example_id, image, text"
    ):
        CaptionCollator(collator, "topic")(rows)


@pytest.mark.parametrize("make_model, make_processor, loss", [
    (tiny_siglip, tiny_siglip_processor, "sigmoid"), (tiny_clip, tiny_clip_processor, "softmax"),
])  # fmt: skip
def test_a_data_set_embedded_in_batches_is_each_row_embedded_alone(make_model, make_processor, loss):
    rows = rows_with_captions([*CAPTIONS, ["a star", "a red star"], "a black circle", "a green star"])
    for row, group in zip(rows, ("x", "y", "x", "z", "y", "w", "z"), strict=True):
        row["group"] = group
    rows[5]["image"] = b"no image"  # a whole batch of two is one row then
    model, processor = make_model(0), make_processor()
    expose_temperature(model)
    view, collator = DualEncoder(model.config, processor), JESTDataCollator(processor)
    loader = DataLoader(Rows(rows), batch_size=2, collate_fn=CaptionCollator(collator, "group"))
    model.train()
    found = embed_dataset(view, model, loader, torch.device("cpu"), loss)
    assert not model.training

    images, texts, caption_groups = [], [], []
    for row in rows[:5] + rows[6:]:
        for caption in collator.captions(row):
            alone = view.score(model, collator([{**row, "text": caption}]), 1)
            texts.append(alone.text[0])
            caption_groups.append("xyzw".index(row["group"]))
        images.append(alone.image[0])
    torch.testing.assert_close(found.image, torch.stack(images))
    torch.testing.assert_close(found.text, torch.stack(texts))
    assert found.image_groups.tolist() == [0, 1, 0, 2, 1, 2]  # the unreadable row's group "w" has no number
    assert found.text_groups.tolist() == caption_groups
    assert found.skipped == 1


def test_the_loss_takes_the_first_caption_of_each_image():
    rows = rows_with_captions(CAPTIONS)
    model, processor = tiny_siglip(0), tiny_siglip_processor()
    expose_temperature(model)
    view, collator = DualEncoder(model.config, processor), JESTDataCollator(processor)
    loader = DataLoader(Rows(rows), batch_size=3, collate_fn=CaptionCollator(collator))
    found = embed_dataset(view, model, loader, torch.device("cpu"), "sigmoid", loss_batch_size=3)
    first = [{**row, "text": collator.captions(row)[0]} for row in rows]
    losses = []
    for part in (first[:3], first[-3:]):
        one = view.score(model, collator(part), 3)
        losses.append(sigmoid_contrastive_loss(one.image, one.text, one.logit_scale, one.logit_bias).item())
    assert found.loss == pytest.approx(np.mean(losses))


def test_rows_of_which_none_can_be_read():
    rows = [{**row, "image": None} for row in random_rows(5)]
    model, processor = tiny_siglip(0), tiny_siglip_processor()
    expose_temperature(model)
    loader = DataLoader(Rows(rows), batch_size=2, collate_fn=CaptionCollator(JESTDataCollator(processor)))
    with pytest.raises(ValueError, match="not one of the 5 evaluation rows can be read .example 0: there is no image"):
        embed_dataset(DualEncoder(model.config, processor), model, loader, torch.device("cpu"), "sigmoid")


def test_one_batch_of_broken_rows_among_others_is_passed_over():
    rows = random_rows(6)
    for row in rows[2:4]:
        row["image"] = None
    model, processor = tiny_siglip(0), tiny_siglip_processor()
    expose_temperature(model)
    loader = DataLoader(Rows(rows), batch_size=2, collate_fn=CaptionCollator(JESTDataCollator(processor)))
    found = embed_dataset(DualEncoder(model.config, processor), model, loader, torch.device("cpu"), "sigmoid")
    assert found.image_groups.tolist() == [0, 1, 2, 3] and found.skipped == 2


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_rows_without_a_group_are_no_group(value):
    rows = [{**row, "concept": value} for row in random_rows(20)]
    model, processor = tiny_siglip(0), tiny_siglip_processor()
    expose_temperature(model)
    collator = CaptionCollator(JESTDataCollator(processor), "concept")
    loader = DataLoader(Rows(rows), batch_size=4, collate_fn=collator)
    found = embed_dataset(DualEncoder(model.config, processor), model, loader, torch.device("cpu"), "sigmoid")
    assert found.image_groups.tolist() == list(range(20))


@pytest.mark.parametrize("value", [["a"], {"a": 1}, {1}])
def test_a_group_is_one_value(value):
    rows = [{**row, "example_id": 0, "concept": value} for row in random_rows(1)]
    with pytest.raises(ValueError, match=f"eval_group_column='concept' holds a {type(value).__name__} "):
        CaptionCollator(JESTDataCollator(tiny_siglip_processor()), "concept")(rows)


@pytest.mark.parametrize("kind, make_model, make_processor", [
    ("sigmoid", tiny_siglip, tiny_siglip_processor), ("softmax", tiny_clip, tiny_clip_processor),
])  # fmt: skip
def test_the_loss_does_not_depend_on_the_batches_of_the_forwards(kind, make_model, make_processor):
    rows = random_rows(21)
    rows[4]["image"] = None
    model, processor = make_model(0), make_processor()
    expose_temperature(model)
    read, losses = DualEncoder(model.config, processor), []
    for batch_size in (1, 3, 4, 20, 21, 50):
        loader = DataLoader(Rows(rows), batch_size, collate_fn=CaptionCollator(JESTDataCollator(processor)))
        losses.append(embed_dataset(read, model, loader, torch.device("cpu"), kind, loss_batch_size=8).loss)
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)


def test_predictions_have_an_image_for_each_row_and_name_the_row_of_each_caption():
    rows = rows_with_captions([*CAPTIONS, ["a star", "a red star"], "a black circle"])
    rows[1]["image"] = b"no image"
    model, processor = tiny_siglip(0), tiny_siglip_processor()
    expose_temperature(model)
    read, collator = DualEncoder(model.config, processor), JESTDataCollator(processor)
    loader = DataLoader(Rows(rows), batch_size=2, collate_fn=CaptionCollator(collator))
    found = embed_dataset(read, model, loader, torch.device("cpu"), "sigmoid")
    images, texts = found.predictions
    assert np.isnan(images[1]).all() and not np.isnan(np.delete(images, 1, axis=0)).any()
    wanted = [index for index, row in enumerate(rows) for _ in collator.captions(row) if index != 1]
    assert found.label_ids.tolist() == wanted and len(texts) == len(wanted)
    for text, index in zip(texts, wanted, strict=True):
        captions = collator.captions(rows[index])
        alone = [read.score(model, collator([{**rows[index], "text": one}]), 1).text[0].numpy() for one in captions]
        assert any(np.allclose(text, one, atol=1e-5) for one in alone)
