# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The built-in scenes: reproducible rows, clean splits without noise, and noise of the documented kinds."""

from __future__ import annotations

import io
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

from jest_hf.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    SPLIT_SIZES,
    WEB_NOISE,
    Scene,
    Thing,
    load_scenes,
)


def _raw(dataset: datasets.Dataset) -> list[dict]:
    return list(dataset.cast_column("image", datasets.Image(decode=False)))


@pytest.fixture(scope="module")
def web() -> datasets.Dataset:
    return load_scenes("web", n=4_000)


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_a_row_depends_on_seed_split_and_index_alone(split):
    few, more = _raw(load_scenes(split, n=7)), _raw(load_scenes(split, n=20))
    assert few == more[:7]
    assert few != _raw(load_scenes(split, n=7, seed=1))


def test_rows_are_the_ones_they_always_were():
    # A changed draw changes every published figure: it should be on purpose.
    assert load_scenes("curated", n=3)["caption"][:] == [
        "a small orange diamond below a tiny purple ring on gray",
        "a little orange plus on white",
        "here is a little violet hoop below a huge orange star against grey",
    ]
    assert load_scenes("test", n=1)["group"][:] == [47753425]


def test_columns_and_images():
    row = load_scenes("validation", n=1)[0]
    assert set(row) == {"image", "caption", "noise", "group"}
    assert (row["image"].size, row["image"].mode) == ((IMAGE_SIZE, IMAGE_SIZE), "RGB")
    assert row["noise"] == "aligned"


def test_training_validation_and_test_share_no_meaning(web):
    groups = {split: set(load_scenes(split, n=1_000, seed=seed)["group"][:]) for split, seed in
              (("curated", 0), ("validation", 1), ("test", 2))}  # fmt: skip
    groups["training"] = groups.pop("curated") | set(web["group"][:])
    assert not groups["training"] & groups["validation"]
    assert not groups["training"] & groups["test"]
    assert not groups["validation"] & groups["test"]
    assert min(len(groups["validation"]), len(groups["test"])) > 850  # few of 1,000 rows mean the same


def test_meaning_is_injective():
    meanings = Counter()
    for background in range(len(BACKGROUNDS)):
        for size in range(len(SIZES)):
            for colour in range(len(COLOURS)):
                for shape in range(len(SHAPES)):
                    one, other = Thing(size, colour, shape), Thing(0, 1, 2)
                    for things in ((one,), (one, other), (other, one), (one, one), (one, other, one)):
                        for arrangement in range(2):
                            meanings[Scene(background, arrangement, things).meaning] += 1
    # (one, other) and (other, one) coincide, and equal (one, one), where one is the other: 2 x 3 x 2 repeats.
    assert sum(meanings.values()) - len(meanings) == 2 * 3 * 2


def test_captions_say_what_the_scene_shows():
    for row in load_scenes("curated", n=300):
        words = row["caption"].split()
        code, things = row["group"], []
        while code >= 2 * len(BACKGROUNDS) * 4:
            code, shape = divmod(code, len(SHAPES))
            code, colour = divmod(code, len(COLOURS))
            code, size = divmod(code, len(SIZES))
            things.append((size, colour, shape))
        assert len(things) == code // (2 * len(BACKGROUNDS))
        for size, colour, shape in things:
            assert set(SIZES[size][0]) & set(words)
            assert set(COLOURS[colour][0]) & set(words)
            assert set(SHAPES[shape]) & set(words)
        assert set(BACKGROUNDS[code // 2 % len(BACKGROUNDS)][0]) & set(words)
        assert len(words) <= 18


def test_pictures_show_the_colours_of_the_scene():
    for row in load_scenes("curated", n=100):
        pixels = np.asarray(row["image"], dtype=int).reshape(-1, 3)
        for names, rgb in COLOURS:
            if set(names) & set(row["caption"].split()):
                assert np.abs(pixels - rgb).max(axis=1).min() <= 20, (row["caption"], names)


def test_web_has_the_stated_noise(web):
    shares = {kind: count / len(web) for kind, count in Counter(web["noise"]).items()}
    assert shares == pytest.approx(WEB_NOISE, abs=0.03)
    assert sum(WEB_NOISE.values()) == pytest.approx(1)


def test_boilerplate_never_describes_and_repeats(web):
    captions = [row["caption"] for row in web.select_columns(["caption", "noise"]) if row["noise"] == "boilerplate"]
    colours = {word for names, _ in COLOURS for word in names}
    assert not any(colours & set(caption.split()) for caption in captions)
    assert 150 < len(set(captions)) < len(captions)


def test_near_duplicates_flood_with_few_scenes_and_differ_in_pixels(web):
    rows = [row for row in _raw(web) if row["noise"] == "near-duplicate"]
    assert len({row["caption"] for row in rows}) <= 60
    assert len({row["group"] for row in rows}) <= 60
    assert len({row["image"]["bytes"] for row in rows}) == len(rows)
    first = [row for row in rows if row["caption"] == rows[0]["caption"]]
    assert len(first) > 3
    images = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])), dtype=float) for row in first]
    assert np.abs(images[0] - images[1]).mean() < 60


def test_shuffled_captions_describe_another_scene(web):
    colours = {word: k for k, (names, _) in enumerate(COLOURS) for word in names}
    wrong = 0
    shuffled = [row for row in web.select_columns(["caption", "noise", "group"]) if row["noise"] == "shuffled"]
    for row in shuffled:
        last_colour = row["group"] // len(SHAPES) % len(COLOURS)
        wrong += last_colour not in {colours[word] for word in row["caption"].split() if word in colours}
    assert wrong / len(shuffled) > 0.6


@pytest.mark.parametrize("arguments", [{"split": "train"}, {"split": "web", "n": -1}, {"split": "web", "seed": -1}])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="choose one of|must both be at least 0"):
        load_scenes(**arguments)
