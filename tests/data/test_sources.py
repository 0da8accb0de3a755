# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Sources: every kind of local data set opens without the network, and every mistake raises a clear error."""

from __future__ import annotations

import io
import json
import socket
import tarfile

import datasets
import pytest
from PIL import Image

from jest_hf.data import load_source


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a local source asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def _png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": _png(k), "path": None} for k in range(6)],
            "caption": [f"caption {k}" for k in range(6)],
            "split": ["train", "train", "train", "test", "test", "train"],
            "source": ["noto", "flat", "3d", "noto", "flat", "noto"],
            "label": [0, 1, 2, 0, 1, 0],
        },
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "caption": datasets.Value("string"),
                "split": datasets.Value("string"),
                "source": datasets.Value("string"),
                "label": datasets.Value("int64"),
            }
        ),
    )


@pytest.fixture
def parquet(rows, tmp_path) -> str:
    path = tmp_path / "rows.parquet"
    rows.to_parquet(path)
    return str(path)


def test_parquet_file_keeps_the_image_feature(parquet):
    loaded = load_source(parquet)
    assert loaded["caption"][:] == [f"caption {k}" for k in range(6)]
    assert loaded[3]["image"].getpixel((0, 0)) == (3, 0, 0)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_text_files(rows, tmp_path, kind):
    path = str(tmp_path / f"rows.{kind}")
    text = rows.remove_columns("image")
    text.to_csv(path) if kind == "csv" else text.to_json(path)
    assert load_source(path)["caption"][:] == rows["caption"][:]


def test_glob_joins_files_in_order(rows, tmp_path):
    for k in range(3):
        rows.select([2 * k, 2 * k + 1]).to_parquet(tmp_path / f"part-{k}.parquet")
    assert load_source(str(tmp_path / "part-*.parquet"))["caption"][:] == rows["caption"][:]


def test_saved_to_disk_one_and_several_splits(rows, tmp_path):
    rows.save_to_disk(tmp_path / "one")
    assert load_source(str(tmp_path / "one"))["caption"][:] == rows["caption"][:]
    datasets.DatasetDict(a=rows.select([0]), b=rows.select([1, 2])).save_to_disk(tmp_path / "two")
    assert len(load_source(str(tmp_path / "two"), split="b")) == 2
    with pytest.raises(ValueError, match="has several splits; set split='a', or another of a, b"):
        load_source(str(tmp_path / "two"))


def test_arrow_file_and_folder_of_parquet(rows, tmp_path):
    rows.save_to_disk(tmp_path / "saved")
    assert len(load_source(str(next((tmp_path / "saved").glob("*.arrow"))))) == 6
    (tmp_path / "folder").mkdir()
    rows.to_parquet(tmp_path / "folder" / "train.parquet")
    rows.select([0]).to_parquet(tmp_path / "folder" / "test.parquet")
    assert len(load_source(str(tmp_path / "folder"), split="train")) == 6
    assert len(load_source(str(tmp_path / "folder"), split="test")) == 1


def test_image_folder_with_captions(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    lines = []
    for k in range(3):
        (folder / f"{k}.png").write_bytes(_png(k))
        lines.append(json.dumps({"file_name": f"{k}.png", "text": f"picture {k}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    loaded = load_source(str(folder))
    assert {row["text"]: row["image"].getpixel((0, 0))[0] for row in loaded} == {f"picture {k}": k for k in range(3)}


def test_webdataset(tmp_path):
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for k in range(2):
            for suffix, payload in (("png", _png(k)), ("txt", f"picture {k}".encode())):
                info = tarfile.TarInfo(f"{k}.{suffix}")
                info.size = len(payload)
                archive.addfile(info, io.BytesIO(payload))
    loaded = load_source(str(path))
    assert loaded["txt"][:] == ["picture 0", "picture 1"]
    assert loaded[1]["png"].getpixel((0, 0)) == (1, 0, 0)


def test_builder_with_data_files(parquet):
    assert len(load_source("parquet", data_files={"mine": parquet}, split="mine")) == 6


def test_scenes():
    captions = load_source("scenes:web", max_rows=5)["caption"][:]
    assert len(captions) == 5
    assert load_source("scenes", split="web", max_rows=5)["caption"][:] == captions
    only = load_source("scenes:validation", where={"noise": "aligned"}, max_rows=3)
    assert len(only) == 3


def test_where_and_max_rows(parquet):
    loaded = load_source(parquet, where={"split": "train", "source": ["noto", "3d"]})
    assert loaded["caption"][:] == ["caption 0", "caption 2", "caption 5"]
    assert load_source(parquet, where={"label": 0}, max_rows=2)["caption"][:] == ["caption 0", "caption 3"]
    assert len(load_source(parquet, max_rows=100)) == 6


def test_where_takes_null_as_a_value(tmp_path):
    rows = datasets.Dataset.from_dict({"caption": ["a", "b", "c"], "kind": ["x", None, "y"]})
    rows.to_parquet(tmp_path / "nulls.parquet")
    assert load_source(str(tmp_path / "nulls.parquet"), where={"kind": "x"})["caption"][:] == ["a"]
    assert load_source(str(tmp_path / "nulls.parquet"), where={"kind": [None, "y"]})["caption"][:] == ["b", "c"]


@pytest.mark.parametrize("spec", ["./nowhere", "/nowhere/at/all", "nowhere.parquet", "data/*/x.parquet", "a/b/c"])
def test_missing_paths_are_not_mistaken_for_hub_ids(spec):
    with pytest.raises(FileNotFoundError, match="does not exist; check the path"):
        load_source(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, r"split='test' is not a split of .*; choose one of train, or filter"),
        ({"where": {"style": "noto"}}, "names the column 'style', .*name one of image, caption"),
        ({"where": {"source": "nobody"}}, "matches no row of"),
        ({"where": {"label": "red"}}, "where={'label': 'red'} does not fit the column 'label', which holds int64"),
        ({"max_rows": 0}, "max_rows=0 must be at least 1"),
    ],
)
def test_wrong_options_are_refused(parquet, options, message):
    with pytest.raises(ValueError, match=message):
        load_source(parquet, **options)


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("scenes", None, "needs a split"),
        ("scenes:web", "test", "name different splits; pass one of them"),
        ("scenes:train", None, "split='train' is not a split"),
    ],
)
def test_wrong_scenes_are_refused(spec, split, message):
    with pytest.raises(ValueError, match=message):
        load_source(spec, split=split)


def test_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "rows.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match="pass files of one kind of .parquet"):
        load_source(str(tmp_path / "rows.xlsx"))
