# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Measuring a pool and filtering it: against pairs whose faults are known, and literal slow references."""

from __future__ import annotations

import io
import math
from dataclasses import fields

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from jest_hf.curation.filters import CurationFilters, curate, join, measure_alignment, measure_captions, measure_images
from jest_hf.curation.near_duplicates import first_of_near_duplicates, perceptual_hash
from tests.helpers import (
    encode,
    random_image,
    random_rows,
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip_processor,
)


def dataset_of(rows: list[dict]) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def file_of(image: Image.Image) -> dict:
    return {"bytes": encode(image), "path": None}


def heart(colour: str, size: int = 64) -> Image.Image:
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).ellipse((size // 8, size // 5, size - size // 8, size - size // 6), fill=colour)
    return image


def distance(left: np.ndarray, right: np.ndarray) -> int:
    return int(np.unpackbits(left ^ right).sum())


# ---- Captions ----


def test_captions_are_measured():
    rows = datasets.Dataset.from_dict(
        {"caption": [["", "a red fox"], ["IMG_0012.jpg"], [], None, ["img_7.JPG"], ["ein Fuchs 2"]]}
    )
    measured = measure_captions(rows)
    assert measured["readable_caption"].tolist() == [True, True, False, False, True, True]
    assert measured["words"].tolist() == [3, 1, 0, 0, 1, 3]
    assert measured["letters"] == pytest.approx([1.0, 6 / 12, 0, 0, 6 / 9, 8 / 9])
    assert measured["repeats"].tolist() == [1, 2, 0, 0, 2, 1]


def test_the_caption_column_has_to_be_there():
    rows = datasets.Dataset.from_dict({"title": ["a fox"]})
    assert measure_captions(rows, "title")["words"].tolist() == [2]
    with pytest.raises(ValueError, match="none of the columns text, caption, captions .*title.*caption_column"):
        measure_captions(rows)


# ---- Images ----


def test_images_are_measured():
    halves = Image.new("L", (40, 20), 0)
    halves.paste(255, (20, 0, 40, 20))
    images = [Image.new("RGB", (30, 50), "grey"), halves]
    rows = dataset_of([{"image": file_of(image), "text": "x"} for image in images])
    measured = measure_images(rows)
    assert measured["readable_image"].all()
    assert measured["side"].tolist() == [30, 20]
    assert measured["contrast"] == pytest.approx([0.0, 127.5])
    assert measured["entropy"] == pytest.approx([0.0, 1.0])


def test_broken_images_are_counted_and_not_crashed_on():
    good, *others = random_rows(4)
    broken = [{"bytes": b"no image", "path": None}, {"bytes": good["image"]["bytes"][:60], "path": None}]
    broken.append({"bytes": None, "path": "/nowhere/at/all.png"})
    rows = dataset_of([good, *({**other, "image": image} for other, image in zip(others, broken, strict=True))])
    measured = measure_images(rows) | measure_captions(rows)
    assert measured["readable_image"].tolist() == [True, False, False, False]
    assert np.isnan(measured["contrast"][1:]).all()
    kept, results = curate(rows, measured, CurationFilters())
    assert [(one.name, one.rows_left) for one in results] == [("readable", 1), ("min_words", 1)]
    assert kept["pool_row"] == [0]
    aligned = measure_alignment(rows, tiny_siglip(), tiny_siglip_processor())["alignment"]
    assert np.isnan(aligned).tolist() == [False, True, True, True]


def test_a_hash_survives_resizing_and_recompression_but_not_another_colour():
    generator = np.random.default_rng(0)
    drawn = [random_image(64, 64, generator) for _ in range(8)] + [heart("red"), heart("blue"), heart("green")]
    hashes = [perceptual_hash(image) for image in drawn]
    for image, found in zip(drawn[:8], hashes, strict=False):
        jpeg = Image.open(io.BytesIO(encode(image, "JPEG", quality=80)))
        assert distance(found, perceptual_hash(jpeg)) <= 12
        assert distance(found, perceptual_hash(image.resize((96, 96)))) <= 12
    assert min(distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 12


# ---- Near duplicates ----


def first_by_comparing_all(hashes: np.ndarray, limit: int, priority: np.ndarray) -> list[bool]:
    """The definition: in the order of priority, a row stays if no row that stays is close."""
    kept: list[int] = []
    for row in sorted(range(len(hashes)), key=lambda row: (-priority[row], row)):
        if all(distance(hashes[row], hashes[other]) > limit for other in kept):
            kept.append(row)
    return [row in kept for row in range(len(hashes))]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), limit=st.integers(0, 16))
def test_near_duplicates_are_those_of_the_definition(seed, n, limit):
    generator = np.random.default_rng(seed)
    hashes = generator.choice(np.array([0, 1, 3, 255], dtype=np.uint8), size=(n, 2))
    priority = generator.integers(0, 4, n).astype(float)  # with ties
    expected = first_by_comparing_all(hashes, limit, priority)
    assert first_of_near_duplicates(hashes, limit, priority).tolist() == expected
    assert first_of_near_duplicates(hashes, limit).tolist() == first_by_comparing_all(hashes, limit, np.zeros(n))


# ---- Alignment ----


@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_alignment_is_the_cosine_of_the_model_itself(family):
    model, processor = {
        "siglip": (tiny_siglip, tiny_siglip_processor),
        "clip": (tiny_clip, tiny_clip_processor),
    }[family]
    model, processor = model().eval(), processor()
    listed = random_rows(7)
    rows = dataset_of([{"image": row["image"], "text": [row["text"], "another caption"]} for row in listed])
    measured = measure_alignment(rows, model, processor, batch_size=3)["alignment"]
    inputs = processor(
        images=[row["image"] for row in rows], text=[row["text"] for row in listed],
        padding="max_length", return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        output = model(**inputs)
    expected = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
    assert measured.dtype == np.float32
    np.testing.assert_allclose(measured, expected.numpy(), atol=1e-5)


def test_parts_are_as_good_as_the_whole():
    rows, model, processor = dataset_of(random_rows(10)), tiny_siglip(), tiny_siglip_processor()

    def measure(part):
        return measure_images(part) | measure_alignment(part, model, processor, batch_size=4)

    whole = measure(rows)
    parts = join(measure(rows.select(range(start, min(start + 4, 10)))) for start in (0, 4, 8))
    assert whole.keys() == parts.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(values, parts[name], atol=1e-6)


# ---- Filtering ----


def measures_of(n: int, **values) -> dict[str, np.ndarray]:
    good = {
        "readable_caption": np.ones(n, bool), "words": np.full(n, 3), "letters": np.ones(n), "repeats": np.ones(n),
        "readable_image": np.ones(n, bool), "side": np.full(n, 64), "contrast": np.full(n, 50.0),
        "entropy": np.full(n, 4.0), "hash": np.random.default_rng(0).integers(0, 256, (n, 24), dtype=np.uint8),
        "alignment": np.linspace(1, 0, n, dtype=np.float32),
    }  # fmt: skip
    return good | {name: np.asarray(value) for name, value in values.items()}


def rows_of(n: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"caption": [f"row {index}" for index in range(n)]})


@pytest.mark.parametrize(
    ("name", "limit", "measured"),
    [
        ("min_words", 2, {"words": [1, 2, 3, 2]}),
        ("min_letters", 0.5, {"letters": [0.4, 0.5, 1.0, 0.9]}),
        ("max_repeats", 3, {"repeats": [4, 3, 1, 2]}),
        ("min_side", 32, {"side": [31, 32, 99, 64]}),
        ("min_contrast", 1.0, {"contrast": [math.nan, 1.0, 2.0, 50.0]}),
        ("min_entropy", 1.0, {"entropy": [0.5, 1.0, 2.0, 7.0]}),
        ("min_alignment", 0.25, {"alignment": [0.2, 0.25, 0.9, 0.5]}),
        ("top_alignment", 0.75, {"alignment": [-0.2, 0.25, 0.9, 0.5]}),
        ("duplicate_distance", 0, {"hash": np.uint8([[1], [1], [2], [3]]), "alignment": [0.1, 0.2, 0.3, 0.3]}),
    ],
)
def test_each_filter_drops_the_row_that_is_beyond_its_limit(name, limit, measured):
    kept, results = curate(rows_of(4), measures_of(4, **measured), CurationFilters(**{name: limit}))
    assert kept["pool_row"] == [1, 2, 3]
    assert kept["caption"] == ["row 1", "row 2", "row 3"]
    assert (results[-1].name, results[-1].limit, results[-1].rows_left) == (name, limit, 3)


def test_every_limit_is_tested_above():
    tested = {mark.args[1][i][0] for mark in test_each_filter_drops_the_row_that_is_beyond_its_limit.pytestmark
              for i in range(len(mark.args[1]))}  # fmt: skip
    assert tested == {one.name for one in fields(CurationFilters)}


def test_the_top_is_taken_of_what_other_filters_left_and_duplicates_last():
    measured = measures_of(
        6,
        words=[1, 3, 3, 3, 3, 3],
        alignment=[0.9, 0.8, 0.7, 0.75, 0.2, 0.1],
        hash=np.uint8([[7], [1], [2], [2], [3], [4]]),
    )
    filters = CurationFilters(min_words=2, top_alignment=0.6, duplicate_distance=0)
    kept, results = curate(rows_of(6), measured, filters)
    assert [(one.name, one.rows_left) for one in results] == [
        ("readable", 6), ("min_words", 5), ("top_alignment", 3), ("duplicate_distance", 2),
    ]  # fmt: skip
    assert kept["pool_row"] == [1, 3]  # of the two that are alike, the one that is aligned better
    assert kept["alignment"] == pytest.approx([0.8, 0.75])


def test_a_curated_set_can_be_curated_again():
    once, _ = curate(rows_of(4), measures_of(4), CurationFilters(top_alignment=0.5))
    again, _ = curate(once, measures_of(2), CurationFilters(top_alignment=0.5))
    assert again["pool_row"] == [0] and set(again.column_names) == {"caption", "pool_row", "alignment"}


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"top_alignment=1.5 must lie in \[0.0, 1.0\]"):
        CurationFilters(top_alignment=1.5)
    with pytest.raises(ValueError, match="top_alignment=0 would keep no row"):
        CurationFilters(top_alignment=0)
    captions = {name: measures_of(2)[name] for name in ("readable_caption", "words", "letters", "repeats")}
    with pytest.raises(ValueError, match="the filters need side, alignment, which measures does not have"):
        curate(rows_of(2), captions, CurationFilters(min_side=8, min_alignment=0.1))
    with pytest.raises(ValueError, match=r"no row is left of 2 .*readable: 2, min_words: 0.*loosen"):
        curate(rows_of(2), captions, CurationFilters(min_words=9))
