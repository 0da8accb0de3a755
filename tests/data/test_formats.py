# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Data as people have them: tars of several formats, CSV with paths, streams, tables of addresses."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import datasets
import pytest
from PIL import Image

from jest_hf.data import load_source
from jest_hf.data.formats import features_of, find_columns, separator_of
from jest_hf.data.streamed_rows import StreamedRows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(k: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (20 * k, 0, 0)).save(file, kind)
    return file.getvalue()


def tar(path, samples) -> str:
    """Write samples, each a dict of suffix and content."""
    with tarfile.open(path, "w") as archive:
        for k, sample in enumerate(samples):
            for suffix, content in sample.items():
                info = tarfile.TarInfo(f"part.1/{k}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(path)


MIXED = [
    {"jpg": picture(0, "JPEG"), "txt": b"zero", "json": b'{"url": "u0", "width": 8}'},
    {"png": picture(1), "txt": b"one", "json": b'{"url": "u1", "width": 9}'},
    {"webp": picture(2, "WEBP"), "txt": b"two", "json": b'{"url": "u2", "width": 10}', "cls": b"4"},
]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 0, 0, 0, 0, 0, 1, 2)], ids=["at once", "later"])
def test_a_tar_of_several_formats(tmp_path, order):
    path = tar(tmp_path / "a.tar", [MIXED[k] for k in order])
    rows = load_source(path)
    assert rows["txt"][:] == [MIXED[k]["txt"].decode() for k in order]
    assert rows[len(order) - 2]["png"].getpixel((0, 0)) == (20, 0, 0) and rows[-1]["webp"] is not None
    assert rows["cls"][:] == [None] * (len(order) - 1) + [4]
    assert rows[-1]["json"] == {"url": "u2", "width": 10}
    assert find_columns(rows, "png;jpg", "json;txt", spec=path) == ("png", "json")
    assert find_columns(rows, "image", None, spec=path) == ("jpg", "txt")


def test_formats_that_come_in_another_tar(tmp_path):
    tar(tmp_path / "a.tar", [MIXED[0]])
    tar(tmp_path / "b.tar", [MIXED[1], MIXED[2]])
    rows = load_source(str(tmp_path / "*.tar"))
    assert len(rows) == 3 and rows[1]["png"] is not None


def test_tars_of_one_format_are_left_to_datasets(tmp_path):
    assert features_of([tar(tmp_path / "a.tar", [MIXED[1], MIXED[1]])]) is None


def test_a_tar_that_is_damaged(tmp_path):
    path = tmp_path / "a.tar"
    tar(path, MIXED)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match="a.tar is no whole tar file"):
        load_source(str(path))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"json": b"{broken"}, {"json": b"{}"}, r"a.tar::part.1/0.json cannot be read, .*JSONDecodeError"),
        ({"txt": b"a"}, {"txt": b"\xff"}, r"a.tar::part.1/1.txt cannot be read, .*UnicodeDecodeError"),
        ({"json": b'{"n": 1}'}, {"json": b'{"n": "x"}'}, r"a.tar::part.1/1.json .* another type .*ArrowInvalid"),
    ],
)
def test_a_file_of_a_tar_that_is_damaged_is_named(tmp_path, first, second, message):
    path = tar(tmp_path / "a.tar", [{"jpg": picture(0, "JPEG"), **first}, {"png": picture(1), **second}])
    with pytest.raises(ValueError, match=message):
        features_of([path])


def test_files_of_ordinary_tars_are_not_decoded(tmp_path):
    samples = [{"png": picture(1), "json": b"{broken", "txt": b"\xff"}] * 2
    assert features_of([tar(tmp_path / "a.tar", samples)]) is None


def test_a_caption_that_is_only_in_the_json(tmp_path):
    samples = [{"png": picture(k), "json": json.dumps({"caption": f"c{k}", "n": k}).encode()} for k in range(3)]
    rows = load_source(tar(tmp_path / "a.tar", samples))
    assert rows["caption"][:] == ["c0", "c1", "c2"] and find_columns(rows, None, None, spec="") == ("png", None)
    stream = load_source(str(tmp_path / "a.tar"), streaming=True)
    assert stream.features == rows.features
    assert [row["caption"] for row in StreamedRows(stream, "png")] == ["c0", "c1", "c2"]
    assert [row["json"] for row in stream] == rows["json"][:]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", "\t"), ("a.tsv", "\t"), ("a.csv", ";")])
def test_a_table_with_relative_paths(tmp_path, name, separator, monkeypatch):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "0.png").write_bytes(picture(3))
    lines = [("image", "title"), ("images/0.png", "a red thing"), ("images/1.png", "not there"), ("", "none")]
    (folder / name).write_text("\n".join(separator.join(line) for line in lines) + "\n")
    assert separator_of(str(folder / name)) == separator
    monkeypatch.chdir(tmp_path)
    rows = load_source(f"data/{name}")
    paths = [str(folder / "images" / f"{k}.png") for k in (0, 1)]
    assert rows["image"][:] == [*paths, None] and rows["title"][0] == "a red thing"
    assert rows.column_names == ["image", "title"]
    stream = load_source(f"data/{name}", streaming=True)
    assert [row["image"] for row in stream] == rows["image"][:] and next(iter(stream))["title"] == "a red thing"


@pytest.mark.parametrize("streaming", [False, True])
def test_the_paths_of_each_file_start_at_its_folder(tmp_path, streaming, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, (folder, separator) in enumerate([("a", ","), ("b", ","), ("c", ";")]):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes(picture(k))
        (tmp_path / folder / "rows.csv").write_text(f"image{separator}text\n0.png{separator}{k}\n")
    rows = load_source("*/rows.csv", streaming=streaming)
    assert [(row["image"], int(row["text"])) for row in rows] == [
        (str(tmp_path / folder / "0.png"), k) for k, folder in enumerate("abc")
    ]
    # Files of other columns are an error, as they are in one folder.
    (tmp_path / "c" / "rows.csv").write_text("image,title\n0.png,2\n")
    if not streaming:
        with pytest.raises(ValueError, match="spec='\\*/rows.csv' cannot be loaded .*title"):
            load_source("*/rows.csv")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_path_is_never_looked_up_in_the_folder_of_another_file(tmp_path, streaming):
    strings = datasets.Features({"image": datasets.Value("string")})
    for folder, path in (("a", None), ("b", "0.png")):
        (tmp_path / folder).mkdir()
        datasets.Dataset.from_dict({"image": [path]}, strings).to_parquet(tmp_path / folder / "rows.parquet")
    (tmp_path / "a" / "0.png").write_bytes(picture(1))
    rows = load_source(str(tmp_path / "*" / "rows.parquet"), streaming=streaming)
    assert [row["image"] for row in rows] == [None, "0.png"]


def test_files_of_several_folders_without_paths_are_loaded_at_once(tmp_path, monkeypatch):
    calls = []
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kw: calls.append(kw) or load(*args, **kw))
    for k in range(3):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "rows.csv").write_text(f"image,text\nhttps://a/{k}.png,{k}.png\n")
    for streaming in (False, True):
        rows = load_source(str(tmp_path / "*" / "rows.csv"), streaming=streaming)
        assert [row["text"] for row in rows] == ["0.png", "1.png", "2.png"]
        assert len(calls.pop()["data_files"]) == 3 and len(calls.pop()["data_files"]) == 3 and not calls


def test_paths_that_are_right_already_stay(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(1))
    (tmp_path / "a.csv").write_text(f"image,text\n{tmp_path}/0.png,a\n")
    (tmp_path / "b.csv").write_text("image,text\nelsewhere/0.png,a\n")
    assert load_source(str(tmp_path / "a.csv"))["image"][:] == [f"{tmp_path}/0.png"]
    assert load_source(str(tmp_path / "b.csv"))["image"][:] == ["elsewhere/0.png"]


@pytest.mark.parametrize("column", ["url", "URL", "image"])
def test_tables_of_addresses_are_refused(column):
    rows = datasets.Dataset.from_dict({column: ["https://example.org/0.jpg"], "text": ["a"]})
    with pytest.raises(ValueError, match=f"has no images, only their addresses .column '{column}'.; .* img2dataset"):
        find_columns(rows, "image", None, spec="a.parquet")


def test_columns_that_are_named_or_usual():
    rows = datasets.Dataset.from_dict(
        {"image": ["0.png"], "url": ["https://a"], "text": ["a"], "JPG": [""], "txt": [""]}
    )
    assert find_columns(rows, "image", None, spec="") == ("image", None)
    assert find_columns(rows, "JPG", "txt", spec="") == ("JPG", "txt")
    assert find_columns(rows, "photo;picture", "alt;title", spec="") == ("photo", "alt")


def test_a_stream_has_the_rows_that_are_kept(tmp_path):
    table = datasets.Dataset.from_dict({"text": list("abcdef"), "part": [0, 1, 0, 1, 0, 1]})
    table.to_parquet(tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    for options in ({"where": {"part": 1}}, {"where": {"part": [0, 1]}, "max_rows": 4}, {"max_rows": 2}, {}):
        stream = load_source(path, streaming=True, **options)
        assert isinstance(stream, datasets.IterableDataset)
        assert [row["text"] for row in stream] == load_source(path, **options)["text"][:]
    mixed = load_source(tar(tmp_path / "a.tar", MIXED), streaming=True)
    assert [row["txt"] for row in mixed] == ["zero", "one", "two"]
    assert len(list(load_source("scenes:web", max_rows=3, streaming=True))) == 3
    with pytest.raises(ValueError, match="subset='kept.parquet' needs rows that can be read by number"):
        load_source(path, streaming=True, subset="kept.parquet")


@pytest.mark.parametrize("kind", ["csv", "parquet"])  # the columns of a stream of CSV are unknown before it is read
def test_a_condition_of_a_stream_that_names_no_column(tmp_path, kind):
    path = str(tmp_path / f"a.{kind}")
    getattr(datasets.Dataset.from_dict({"text": ["a"], "part": [0]}), f"to_{kind}")(path)
    if kind == "csv":  # nor are their types
        assert len(list(load_source(path, where={"part": [0, "x"]}, streaming=True))) == 1
    for streaming in (False, True):
        with pytest.raises(ValueError, match="names the column 'prt', .*did you mean part.*; name one of text, part"):
            load_source(path, where={"prt": 1}, streaming=streaming)
        if kind == "parquet" or not streaming:
            with pytest.raises(ValueError, match="does not fit the column 'part', which holds int64"):
                load_source(path, where={"part": "x"}, streaming=streaming)


def test_a_stream_can_be_sent_to_loader_workers(tmp_path):
    (tmp_path / "0.png").write_bytes(picture(1))
    (tmp_path / "a.csv").write_text("image,text\n0.png,a\n0.png,b\n")
    samples = [{"png": picture(k), "json": b'{"caption": "c"}'} for k in range(2)]
    tar(tmp_path / "a.tar", samples)
    for name, where, n in (("a.csv", {"text": "a"}, 1), ("a.tar", {"caption": "c"}, 2)):
        stream = load_source(str(tmp_path / name), where=where, streaming=True)
        assert len(list(pickle.loads(pickle.dumps(StreamedRows(stream))))) == n  # what `spawn` does
