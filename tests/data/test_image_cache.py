# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Image caches: the pixels that decoding gives, whatever interrupts the writing; and what is refused."""

from __future__ import annotations

import json
import pickle

import datasets
import numpy as np
import pytest
import torch

from jest_hf import JESTDataCollator
from jest_hf.cli import main
from jest_hf.data.image_cache import open_images
from jest_hf.data.rows import Rows
from jest_hf.images.decoding import decode_image
from jest_hf.images.pixels import ImageGeometry
from tests.data.cached_images import REGION, SIZE, contents, counting, make, small_regions, some_rows  # noqa: F401  # a fixture
from tests.helpers import (
    encode,
    random_image,
    random_rows,
    tiny_clip_processor,
    tiny_siglip2_processor,
    tiny_siglip_processor,
)


PROCESSORS = {"siglip": tiny_siglip_processor, "clip": tiny_clip_processor, "siglip2": tiny_siglip2_processor}


# ---- What is read ----


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("family", PROCESSORS)
def test_a_super_batch_from_the_cache_is_the_one_that_is_decoded(tmp_path, family, scaled):
    generator = np.random.default_rng(0)
    rows = [{"image": encode(random_image(70, 60, generator), "JPEG"), "text": "a star"} for _ in range(9)]
    rows[2]["image"] = None
    rows[4]["text"] = ""
    collator = JESTDataCollator(
        PROCESSORS[family](), tiny_siglip_processor(image_size=24), scaled_jpeg_decoding=scaled
    )
    cache = make(tmp_path, rows, collator.geometries.values(), scaled_jpeg_decoding=scaled)
    keys = [(1, 7), (1, 2), (1, 0), (1, 4)]
    expected = collator(Rows(rows).__getitems__(keys))
    found = collator(Rows(rows).with_images(cache).__getitems__(keys))
    assert expected.keys() == found.keys() and found["valid"].tolist() == [True, False, True, False]
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert torch.equal(collator([Rows(rows).with_images(cache)[1, 7]])["pixel_values"], found["pixel_values"][:1])


def test_of_a_data_set_the_column_of_the_images_is_not_read(tmp_path, monkeypatch):
    rows = datasets.Dataset.from_list(random_rows(12)).cast_column("image", datasets.Image())
    cache = make(tmp_path, rows)
    read = []
    query = datasets.arrow_dataset.query_table
    monkeypatch.setattr(
        datasets.arrow_dataset, "query_table", lambda *given, **more: read.append(query(*given, **more)) or read[-1]
    )
    cached = Rows(rows).with_images(cache)
    assert [list(row) for row in cached.__getitems__([3, 5])] == [["text", "image", "example_id", "epoch"]] * 2
    assert [table.column_names for table in read] == [["text"]]
    Rows(rows).__getitems__([3])
    assert "image" in read[-1].column_names


def test_another_process_maps_the_file_for_itself(tmp_path):
    cache = make(tmp_path)
    before = cache.image(0).encode({"": SIZE})["pixel_values"]
    data = pickle.dumps(cache)
    assert len(data) < 10_000
    assert np.array_equal(pickle.loads(data).image(0).encode({"": SIZE})["pixel_values"], before)
    assert not before.flags.writeable


def test_a_cached_image_cannot_be_decoded_once_more(tmp_path):
    with pytest.raises(TypeError, match="leave image_cache out where a collator of your own reads"):
        decode_image(make(tmp_path).image(0))


def test_rows_of_another_number_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has 23 rows, and the data set has 22"):
        Rows(some_rows(22)).with_images(make(tmp_path))


# ---- What is refused ----


def other_length(rows):
    rows[1]["image"]["bytes"] += b"\0"  # behind the end of the file: the same pixels
    return rows


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"rows": some_rows(22)}, r"data.n_rows was 23, and in this run it is 22"),
        ({"rows": [{"image": b"x"}] + some_rows()[1:]}, r"data.row.0 was '\w+', and in this run it is '\w+'"),
        ({"rows": [{"jpg": row["image"]} for row in some_rows()], "column": "jpg"}, "was 'image', and .* 'jpg'"),
        ({"scaled_jpeg_decoding": True}, "scaled_jpeg_decoding was False, and in this run it is True"),
        (
            {"geometries": [ImageGeometry(size=(24, 24))]},
            r"it has images of size=\(16, 16\), bicubic by torch, and this run needs size=\(24, 24\), bicubic by t",
        ),
        ({"geometries": [ImageGeometry(size=(16, 16), resample=1)]}, "bicubic by torch, and .* lanczos by PIL"),
    ],
)
def test_a_cache_of_others_is_refused_with_both_values(tmp_path, changed, message):
    make(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message) as info:
        make(tmp_path, **changed)
    assert str(tmp_path) in str(info.value) and "choose another folder, or delete this one" in str(info.value)
    assert contents(tmp_path) == before


def test_one_image_file_of_another_length_is_noticed_where_no_sample_is(tmp_path, monkeypatch):
    monkeypatch.setattr("jest_hf.data.fingerprint.SAMPLED_ROWS", 2)  # the first row and the last

    def table(rows):
        return datasets.Dataset.from_list([{"image": row["image"]} for row in rows])

    make(tmp_path, table(random_rows(23)))
    make(tmp_path, table(random_rows(23)).select([22, *range(22)]).select([*range(1, 23), 0]))
    for other in (table(other_length(random_rows(23))), table(random_rows(23)).select([0, 2, 1, *range(3, 23)])):
        with pytest.raises(ValueError, match="data.files was"):
            make(tmp_path, other)


def test_image_files_outside_of_the_data_set_are_known_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr("jest_hf.data.fingerprint.SAMPLED_ROWS", 2)
    generator = np.random.default_rng(0)
    images = [encode(random_image(20, 20, generator)) for _ in range(6)]

    def table(folder, names):
        folder.mkdir(exist_ok=True)
        for name, image in zip(names, images, strict=True):
            (folder / name).write_bytes(image)
        paths = [{"image": str(folder / name)} for name in names]
        return datasets.Dataset.from_list(paths).cast_column("image", datasets.Image())

    make(tmp_path / "cache", table(tmp_path / "a", "abcdef"))
    make(tmp_path / "cache", table(tmp_path / "b", "abcdef"))  # the folder was moved
    with pytest.raises(ValueError, match="data.files was"):
        make(tmp_path / "cache", table(tmp_path / "c", "abxdef"))


def test_a_cache_with_more_sizes_serves_a_run_that_needs_fewer(tmp_path):
    """With scaled decoding it does not: the pixels depend on all sizes that are made together."""
    both = (SIZE, ImageGeometry(size=(8, 8)))
    make(tmp_path / "full", geometries=both)
    assert make(tmp_path / "full", geometries=both[1:]).geometries == list(both)
    make(tmp_path / "scaled", geometries=both, scaled_jpeg_decoding=True)
    make(tmp_path / "scaled", geometries=both[::-1], scaled_jpeg_decoding=True)
    with pytest.raises(ValueError, match=r"size=\(8, 8\), bicubic by torch, and this run needs size=\(16, 16\)"):
        make(tmp_path / "scaled", geometries=both[:1], scaled_jpeg_decoding=True)


@pytest.mark.parametrize("name", ["pixels.u8", "rows.u8"])
def test_a_damaged_file_is_named(tmp_path, name):
    make(tmp_path)
    with open(tmp_path / name, "rb+") as file:
        file.truncate(20)
    with pytest.raises(ValueError, match=rf"{name} has 20 bytes, and the image cache needs it with \d+ bytes"):
        make(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        open_images(tmp_path)


def test_a_damaged_manifest_is_named(tmp_path):
    make(tmp_path)
    about = json.loads((tmp_path / "images.json").read_text())
    (tmp_path / "images.json").write_text(json.dumps(about | {"format": 7}))
    with pytest.raises(ValueError, match="has format 7, and this version of jest_hf reads format 1"):
        make(tmp_path)
    (tmp_path / "images.json").write_text("{")
    with pytest.raises(ValueError, match=r"images\.json is damaged"):
        make(tmp_path)
    (tmp_path / "images.json").unlink()
    with pytest.raises(ValueError, match=r"has images without images\.json; choose another folder"):
        make(tmp_path)


def test_a_folder_without_a_whole_cache_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no image cache; run `jest-hf cache-images --output_dir"):
        open_images(tmp_path)
    make(tmp_path)
    with open(tmp_path / "rows.u8", "rb+") as file:
        file.write(bytes(4))
    with pytest.raises(FileNotFoundError, match=r"an unfinished image cache \(4 of 23 rows lack\)"):
        open_images(tmp_path)


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"image": np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8)}


def test_images_that_change_are_refused(tmp_path, caplog):
    rows = datasets.Dataset.from_list(random_rows(5))
    rows.set_transform(lambda batch: batch)
    with pytest.raises(ValueError, match=r"transform \(set_transform\).*; leave image_cache out, or take"):
        make(tmp_path, rows)
    with pytest.raises(ValueError, match="row 0 of the Augmented differs from one reading to the next"):
        make(tmp_path, Augmented())
    assert not list(tmp_path.iterdir())

    class Fixed(Augmented):
        def __getitem__(self, index):
            return random_rows(10)[index]

    make(tmp_path, Fixed())
    assert "Fixed are read with their images" in caplog.text


def test_a_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="image_column='photo' is not a column of the rows"):
        make(tmp_path, column="photo")


# ---- The command ----


def test_the_command_makes_a_cache_that_a_run_can_open(tmp_path, capsys):
    tiny_siglip_processor().save_pretrained(tmp_path / "learner")
    tiny_siglip_processor(24).save_pretrained(tmp_path / "reference")
    flags = ["--model", str(tmp_path / "learner"), "--dataset", "scenes:web", "--max_train_rows", "12"]
    flags += ["--ref_model", str(tmp_path / "reference"), "--scoring_view", "image:8", "--disable_tqdm"]
    for name in ("learner", "reference"):  # the processor alone: a model on the Hub has a config too
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    main(["cache-images", *flags, "--output_dir", str(tmp_path / "out"), "--num_workers", "1"])
    printed = capsys.readouterr().out.splitlines()
    assert "12 rows x 2,688 bytes = 32,256 bytes" in printed[0]
    assert printed[1].startswith(f"{tmp_path / 'out'}: 12 rows (0 broken), 2,688 bytes a row, 0.0 MB, ")
    cache = open_images(tmp_path / "out")
    assert [one.output_size for one in cache.geometries] == [(16, 16), (24, 24), (8, 8)]
    with pytest.raises(SystemExit, match="--scoring_view patch:32 is made from the full images"):
        main(["cache-images", *flags, "--scoring_view", "patch:32", "--output_dir", str(tmp_path / "out")])
