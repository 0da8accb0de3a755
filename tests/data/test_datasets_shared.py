# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The real data of the benchmarks: the counts in the README, and no overlap of training and test."""

from __future__ import annotations

from collections import Counter

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.datasets_shared import EMOJI, cifar10, cross_style, demo_web, shared_data_folder


try:
    FOLDER, REASON = shared_data_folder(), ""
except FileNotFoundError as error:
    FOLDER, REASON = None, str(error)

needs_data = pytest.mark.skipif(FOLDER is None, reason=REASON)


def _bytes(dataset: datasets.Dataset) -> list[bytes]:
    return [image["bytes"] for image in dataset.cast_column("image", datasets.Image(decode=False))["image"]]


@pytest.fixture(scope="module")
def styles() -> dict[str, datasets.Dataset]:
    return cross_style(seed=3)


@needs_data
def test_cross_style_has_the_stated_counts(styles):
    rows = 12_026 - 2 * 1_545
    assert {part: len(dataset) for part, dataset in styles.items()} == {
        "curated": 1_915 + 1_545, "pool": rows + rows + rows // 2, "validation": 1_545, "test": 1_545,
    }  # fmt: skip
    counts = Counter(styles["pool"]["noise"])
    assert counts == {"aligned": rows, "shuffled": rows, "boilerplate": rows // 2}
    assert 1 - counts["aligned"] / len(styles["pool"]) == pytest.approx(0.6)
    assert all(set(styles[part]["noise"]) == {"aligned"} for part in ("curated", "validation", "test"))


@needs_data
def test_cross_style_holds_out_its_styles(styles):
    emoji = pq.read_table(FOLDER / EMOJI, columns=["image", "source"]).to_pylist()
    style_of: dict[bytes, set[str]] = {}
    for row in emoji:
        style_of.setdefault(row["image"]["bytes"], set()).add(row["source"])
    for part, expected in (
        ("curated", {"noto", "fluent-high-contrast"}),
        ("pool", {"noto", "fluent-high-contrast", "serenity-pixel", "blobmoji", "emojitwo", "fxemoji"}),
        ("validation", {"fluent-flat"}),
        ("test", {"fluent-3d"}),
    ):
        seen = [style_of[image] for image in set(_bytes(styles[part]))]
        assert all(each & expected for each in seen)
        assert set().union(*seen) >= expected


@needs_data
def test_cross_style_captions_are_right_or_wrong_as_noted(styles):
    names = dict(zip(styles["curated"]["group"], styles["curated"]["caption"], strict=True))
    pool = styles["pool"].select_columns(["caption", "noise", "group"]).to_pandas()
    pool["own"] = pool["group"].map(names)
    right = pool["caption"] == pool["own"]
    assert right[pool["noise"] == "aligned"].mean() > 0.99  # four concepts have two sequences with a name each
    assert not right[pool["noise"] == "boilerplate"].any()
    assert right[pool["noise"] == "shuffled"].mean() < 0.01
    assert len(set(pool["caption"][pool["noise"] == "boilerplate"])) > 100
    assert np.unique(pool["noise"][:200]).size == 3  # mixed, not in blocks
    test = dict(zip(styles["test"]["group"], styles["test"]["caption"], strict=True))
    assert np.mean([names[group] == name for group, name in test.items()]) > 0.99


@needs_data
def test_cross_style_is_a_function_of_its_seed(styles):
    assert cross_style(seed=3)["pool"]["caption"][:] == styles["pool"]["caption"][:]
    other = cross_style(seed=4)
    assert other["pool"]["caption"][:] != styles["pool"]["caption"][:]
    assert other["test"]["caption"][:] == styles["test"]["caption"][:]


@needs_data
def test_demo_web_has_the_stated_counts_and_keeps_its_parts_apart():
    parts = demo_web()
    assert len(parts["curated"]) == 2_000
    assert Counter(parts["pool"]["noise"]) == {
        "aligned": 9_160, "aligned-alt": 2_038, "shuffled": 6_221, "vague": 2_133, "truncated": 1_059,
        "duplicate": 1_254, "near-duplicate": 1_900,
    }  # fmt: skip
    training = set(parts["curated"]["group"]) | set(parts["pool"]["group"])
    assert not training & set(parts["test"]["group"])
    assert not training & set(parts["validation"]["group"])
    # An aligned row of the index meets its own picture: same group, then (nearly always) the same lower-cased name.
    captions: dict[int, set[str]] = {}
    for row in parts["curated"].select_columns(["group", "caption"]):
        captions.setdefault(row["group"], set()).add(row["caption"].lower())
    pool = parts["pool"].select_columns(["group", "caption", "noise"])
    shared = [row for row in pool if row["noise"] == "aligned" and row["group"] in captions]
    assert len(shared) > 500
    assert np.mean([row["caption"].lower() in captions[row["group"]] for row in shared]) > 0.95
    assert parts["test"][0]["image"].mode == "RGB"


def test_absent_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("JEST_HF_SHARED_DATA", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="none: let JEST_HF_SHARED_DATA"):
        cross_style()


@needs_data
def test_cifar10_captions_are_wrong_as_often_as_said():
    parts = cifar10(seed=3, n_curated=1000, wrong=0.6)
    assert {part: len(rows) for part, rows in parts.items()} == {
        "curated": 1000, "pool": 49_000, "validation": 5000, "test": 5000,
    }  # fmt: skip
    name_of = dict(zip(parts["curated"]["group"], parts["curated"]["caption"], strict=True))
    assert len(name_of) == len(set(name_of.values())) == 10
    pool = parts["pool"]
    wrong = [name_of[group] != caption for group, caption in zip(pool["group"], pool["caption"], strict=True)]
    assert wrong == [noise == "shuffled" for noise in pool["noise"]]
    assert np.mean(wrong) == pytest.approx(0.6, abs=0.01)
    assert not set(_bytes(parts["curated"])) & set(_bytes(parts["test"]))
