# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Collators of labelled rows: fixed shapes, inputs equal to the processors', a skip for every row without a label."""

from __future__ import annotations

import logging
import pickle

import datasets
import numpy as np
import pytest
import torch
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

from jest_hf.data.classes import Classes
from jest_hf.data.labelled import ImageLabelCollator, LanguageModelCollator, TextLabelCollator
from jest_hf.data.rows import Rows
from jest_hf.images.normalise import Normalisation
from jest_hf.images.pixels import decode_image, geometry_of, to_uint8
from jest_hf.images.resizing import MOST_LEVELS
from jest_hf.losses.pointwise import IGNORED
from tests.helpers import encode, random_image, tiny_tokenizer
from tests.objectives.labelled import CLASSES, image_rows, text_rows, tiny_vit_processor


def image_collator(**options):
    return ImageLabelCollator(tiny_vit_processor(), CLASSES, **options)


def text_collator(**options):
    return TextLabelCollator(tiny_tokenizer(), CLASSES, **options)


COLLATORS = {
    "image": (image_collator, image_rows),
    "text": (text_collator, text_rows),
    "language": (lambda: LanguageModelCollator(tiny_tokenizer()), text_rows),
}


def described(batch):
    return {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()}


PLACES = {"example_id": (torch.int64, (3,)), "valid": (torch.bool, (3,))}
TOKENS = {"input_ids": (torch.int64, (3, 8)), "attention_mask": (torch.int64, (3, 8))}
SHAPES = {
    "image": {"pixel_values": (torch.uint8, (3, 3, 16, 16)), "labels": (torch.int64, (3,)), **PLACES},
    "text": {**TOKENS, "labels": (torch.int64, (3,)), **PLACES},
    "language": {**TOKENS, "labels": (torch.int64, (3, 8)), **PLACES},
}


@pytest.mark.parametrize("name", COLLATORS)
def test_shapes_are_fixed_whatever_the_rows(name):
    make, rows = COLLATORS[name]
    collator = make()
    assert described(collator(rows(3))) == SHAPES[name]
    blank = dict.fromkeys(("image", "text", "label"))
    assert described(collator([blank] * 3)) == SHAPES[name]
    assert not collator([blank] * 3)["valid"].any()
    one = collator.blank()
    assert {key: (dtype, shape[1:]) for key, (dtype, shape) in described(one).items()} == {
        key: (dtype, shape[1:]) for key, (dtype, shape) in SHAPES[name].items()
    }
    assert one["valid"].tolist() == [False] and (one["labels"] == IGNORED).all()


@pytest.mark.parametrize("name", COLLATORS)
def test_example_ids_are_the_rows_numbers_and_collators_can_be_pickled(name):
    make, rows = COLLATORS[name]
    collator, rows = make(), Rows(rows(9)).__getitems__([(1, 7), (1, 2)])
    batch = collator(rows)
    assert batch["example_id"].tolist() == [7, 2] and batch["valid"].all()
    other = pickle.loads(pickle.dumps(collator))(rows)
    assert all(torch.equal(other[key], batch[key]) for key in batch)


def test_large_jpegs_are_decoded_in_full_or_by_a_setting_at_reduced_size():
    data = encode(random_image(64, 64, np.random.default_rng(0)), "JPEG")
    rows, geometries = [{"image": data, "label": 2}], [geometry_of(tiny_vit_processor())]
    for scaled in (False, True):
        batch = ImageLabelCollator(tiny_vit_processor(), CLASSES, scaled_jpeg_decoding=scaled)(rows)
        image = decode_image(data, geometries, scaled_jpeg_decoding=scaled)
        assert image.size == ((16, 16) if scaled else (64, 64))
        assert torch.equal(batch["pixel_values"][0], to_uint8(image, geometries[0]))


def test_images_are_within_2_levels_of_what_the_processor_gives_once_normalised():
    generator = np.random.default_rng(0)
    rows = [{"image": random_image(*size, generator), "label": 2} for size in ((9, 30), (40, 17))]
    processor = tiny_vit_processor(image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 2.0, 4.0])
    batch = ImageLabelCollator(processor, CLASSES)(rows)
    expected = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    std = torch.tensor(processor.image_std)[:, None, None]
    levels = 255 * std * (Normalisation(processor)(batch["pixel_values"]) - expected).abs()
    assert levels.max() <= MOST_LEVELS + 1e-3


def test_what_is_normalised_already_is_left_alone():
    pixels = torch.rand(1, 3, 4, 4)
    assert Normalisation(tiny_vit_processor())(pixels) is pixels


def test_classes_have_numbers_or_names():
    labels = ["white", 3, np.int64(4), 2.0, True, np.True_, np.array(2), np.float32(4), torch.tensor(3)]
    rows = [{**row, "label": label} for row, label in zip(image_rows(9), labels, strict=True)]
    assert image_collator()(rows)["labels"].tolist() == [3, 3, 4, 2, 1, 1, 2, 4, 3]


@pytest.mark.parametrize(
    "labels", [[0, 1], np.zeros(5), torch.zeros(5), [[0, 1]]], ids=["list", "array", "tensor", "2"]
)
def test_several_labels_of_a_row_are_refused_by_name(labels):
    with pytest.raises(ValueError, match="column 'label' holds a .* of labels .multi-label.*label_column"):
        text_collator()([{"text": "a", "label": labels}])
    with pytest.raises(ValueError, match="column 'label' holds a list of labels .multi-label"):
        text_collator().check_labels(labelled([None, [0, 1]]))


@pytest.mark.parametrize("name", ["image", "text"])
def test_rows_to_predict_need_no_labels(name, caplog):
    make, rows = COLLATORS[name]
    good = rows(4)
    collator = make().without_labels()
    batch = collator([good[0], {**good[1], "label": None}, {**good[2], "label": "octagon"}, {**good[3], name: None}])
    assert batch["valid"].tolist() == [True, True, True, False] and len(caplog.records) == 1
    assert batch["labels"].tolist() == [good[0]["label"], IGNORED, IGNORED, IGNORED]
    whole, inputs = make()(good), "pixel_values" if name == "image" else "input_ids"
    assert torch.equal(batch[inputs][:3], whole[inputs][:3])
    assert collator([{name: good[0][name]}])["valid"].tolist() == [True]
    assert make()([good[0], {**good[1], "label": None}])["valid"].tolist() == [True, False]  # as before


def test_a_processor_with_steps_of_its_own_is_refused():
    size = {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}}
    flips = MobileViTImageProcessorPil(**size)
    with pytest.raises(ValueError, match="MobileViTImageProcessorPil has steps of its own, .*do_flip_channel_order"):
        ImageLabelCollator(flips, CLASSES)
    with pytest.raises(ValueError, match="MobileViTImageProcessorPil has steps of its own"):
        image_collator().with_reference(flips)
    ImageLabelCollator(MobileViTImageProcessorPil(do_flip_channel_order=False, **size), CLASSES)


# Language models


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_labels_of_a_language_model_are_its_tokens(side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    batch = LanguageModelCollator(tokenizer)([{"text": "a red star"}, {"text": "a blue circle and a star and a red"}])
    ids, labels = batch["input_ids"], batch["labels"]
    text = slice(0, 4) if side == "right" else slice(4, 8)  # "a red star", end
    assert ids[0, text].tolist() == [3, 5, 13, 2]
    assert labels[0, text].tolist() == [IGNORED, 5, 13, 2] and (labels[0] != IGNORED).sum() == 3
    assert labels[1].tolist() == [IGNORED, *ids[1, 1:].tolist()]


def test_padding_is_told_from_the_same_token_in_a_text():
    """With `pad_token = eos_token` the end of a text is a label, and the padding after it is not."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    batch = LanguageModelCollator(tokenizer)([{"text": "a red star"}])
    assert batch["input_ids"][0].tolist() == [3, 5, 13, 2, 2, 2, 2, 2]
    assert batch["labels"][0].tolist() == [IGNORED, 5, 13, 2] + [IGNORED] * 4


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_of_one_token_is_skipped(side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    tokenizer.backend_tokenizer.post_processor = None
    collator = LanguageModelCollator(tokenizer)
    assert collator([{"text": "a"}, {"text": "a star"}])["valid"].tolist() == [False, True]


def test_a_tokenizer_that_tells_no_padding_is_refused():
    with pytest.raises(ValueError, match="attention_mask"):
        LanguageModelCollator(tiny_tokenizer(with_mask=False))


# Broken rows

NO_LABELS = {"none": None, "nan": float("nan"), "unlabelled": -1, "too large": 5, "a name": "octagon", "half": 1.5}


@pytest.mark.parametrize("name", ["image", "text"])
@pytest.mark.parametrize("label", NO_LABELS.values(), ids=NO_LABELS)
def test_a_row_without_a_label_keeps_its_place(name, label, caplog):
    make, rows = COLLATORS[name]
    good = rows(3)
    batch = make()([good[0], {**good[1], "label": label, "example_id": 41}, good[2]])
    assert batch["valid"].tolist() == [True, False, True]
    assert batch["labels"].tolist() == [good[0]["label"], IGNORED, good[2]["label"]]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "41" in record.message and "label" in record.message


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("image", {"image": b"<html>"}, "no format"),
        ("text", {"text": "a \ud83d"}, "half a character"),
        ("image", {"image": None}, "no image"),
        ("text", {"text": " \n"}, "empty"),
        ("text", {"text": 7}, "int"),
        ("language", {"text": None}, "NoneType"),
    ],
)
def test_a_broken_row_keeps_its_place(name, change, word, caplog):
    make, rows = COLLATORS[name]
    good = rows(3)
    collator = make()
    batch, whole = collator([good[0], {**good[1], **change}, good[2]]), collator(good)
    assert batch["valid"].tolist() == [True, False, True] and (batch["labels"][1] == IGNORED).all()
    for key in whole:
        assert torch.equal(batch[key][[0, 2]], whole[key][[0, 2]]), key
    assert word in caplog.records[-1].message


def test_the_first_ten_skips_are_logged(caplog):
    collator = text_collator()
    for _ in range(3):
        collator([{"text": "", "label": 0}] * 6)
    assert len(caplog.records) == 10 and "not logged" in caplog.records[-1].message


# The reference


def test_a_reference_with_another_image_size_has_its_own_images():
    rows, other = image_rows(3), tiny_vit_processor(24)
    rows[0]["image"] = encode(random_image(200, 300, np.random.default_rng(0)), "JPEG")
    same = image_collator(ref_image_processor=tiny_vit_processor(image_mean=[0.1] * 3))
    assert "ref_pixel_values" not in same(rows)  # other colours are another normalisation of the same pixels
    batch = same.with_reference(other)(rows)
    assert torch.equal(batch["ref_pixel_values"], ImageLabelCollator(other, CLASSES)(rows)["pixel_values"])
    assert "ref_pixel_values" not in same.with_reference(other).with_reference(None)(rows)


def test_a_reference_with_other_words_has_its_own_tokens():
    other = tiny_tokenizer()
    other.add_tokens(["octagon"])
    batch = text_collator(ref_tokenizer=other)(text_rows(2))
    assert {key for key in batch if key.startswith("ref_")} == {"ref_input_ids", "ref_attention_mask"}
    assert "ref_input_ids" not in text_collator(ref_tokenizer=tiny_tokenizer())(text_rows(2))
    with pytest.raises(ValueError, match="other tokens than the learner.s"):
        LanguageModelCollator(tiny_tokenizer(), other)
    assert LanguageModelCollator(tiny_tokenizer(), tiny_tokenizer()).ref_processor is not None


# Wrong use


@pytest.mark.parametrize(
    ("make", "rows", "words"),
    [
        (image_collator, [], "ImageLabelCollator got an empty list"),
        (image_collator, [{"picture": None, "label": 0}], "'image'.*picture, label.*image_column"),
        (image_collator, [{"image": None, "fine": 0}], "'label'.*image, fine.*label_column"),
        (text_collator, [{"sentence": "a", "label": 0}], "'text'.*text_column"),
        (lambda: LanguageModelCollator(tiny_tokenizer()), [{"content": "a"}], "'text'.*content.*text_column"),
    ],
)
def test_missing_columns_are_named_with_those_there_are(make, rows, words):
    with pytest.raises(ValueError, match=words):
        make()(rows)


def test_columns_can_have_other_names():
    rows = [{"img": row["image"], "fine": row["label"]} for row in image_rows(2)]
    assert image_collator(image_column="img", label_column="fine")(rows)["valid"].all()
    rows = [{"sentence": row["text"], "class": row["label"]} for row in text_rows(2)]
    assert text_collator(text_column="sentence", label_column="class")(rows)["valid"].all()


def test_a_tokenizer_that_cannot_pad_and_a_length_that_does_not_suit_are_refused():
    tokenizer = tiny_tokenizer()
    assert TextLabelCollator(tokenizer, CLASSES, max_length=5)(text_rows(2))["input_ids"].shape == (2, 5)
    with pytest.raises(ValueError, match="max_length=9"):
        TextLabelCollator(tokenizer, CLASSES, max_length=9)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad_token"):
        LanguageModelCollator(tokenizer)


# The labels of a whole data set


def labelled(labels, feature=None):
    features = datasets.Features({"label": feature}) if feature else None
    return datasets.Dataset.from_dict({"label": labels}, features=features)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (labelled([0, 7, 4]), "the label 7, which is none of the model's 5 classes; .*num_labels"),
        (labelled(["red", "octagon"]), "the label 'octagon'"),
        (labelled([-1, None]), "label_column='label' has no label in any row"),
        (labelled([0]).rename_column("label", "fine"), "label_column='label' is not a column .*fine"),
        (labelled([0], datasets.ClassLabel(names=["green", "red"])), "'green' has the number 0 .*1 in the model"),
    ],
)
def test_labels_that_a_model_cannot_have_are_refused(dataset, words):
    with pytest.raises(ValueError, match=words):
        text_collator().check_labels(dataset)


def test_labels_that_a_model_has_and_rows_without_are_accepted():
    image_collator().check_labels(labelled([0, 4, -1, None]))
    image_collator().check_labels(labelled([0.0, 4.0, None]))
    image_collator().check_labels(labelled([True, False]))
    for unlabelled in (labelled([-1, None]), labelled([0]).rename_column("label", "fine")):
        image_collator().without_labels().check_labels(unlabelled)
    with pytest.raises(ValueError, match="the label 7"):
        image_collator().without_labels().check_labels(labelled([7]))
    Classes(CLASSES, "label").check(labelled(["red", "black", None]))
    Classes(CLASSES, "label").check(labelled([0, 1], datasets.ClassLabel(names=list(CLASSES))))
    names = {f"LABEL_{number}": number for number in range(2)}  # what a model without names has
    Classes(names, "label").check(labelled([0, 1], datasets.ClassLabel(names=["green", "red"])))
    Classes(CLASSES, "label").check(image_rows(2))  # a list is read as it comes
