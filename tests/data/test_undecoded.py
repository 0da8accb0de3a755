# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Below transforms of `datasets` and wrappers of torch a broken row is that row alone, and images stay encoded."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Subset

from jest_hf.data import load_source
from jest_hf.data.broken import BrokenRow
from jest_hf.data.fingerprint import content_of
from jest_hf.data.rows import Rows
from jest_hf.data.streamed_rows import StreamedRows
from jest_hf.data.undecoded import GUARDS, undecoded
from jest_hf.images import lazy
from jest_hf.images.decoding import decode_pixels
from jest_hf.images.lazy import LazyImage
from jest_hf.images.reading import BrokenImage
from tests.helpers import encode, random_image, random_rows


N, BAD = 6, 2
GOOD = random_rows(1)[0]
FEATURES = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})


def rows() -> list[dict[str, Any]]:
    made = random_rows(N)
    made[BAD]["image"] = {"bytes": b"broken", "path": None}
    return made


def table() -> datasets.Dataset:
    return datasets.Dataset.from_list(rows(), features=FEATURES)


def streams() -> list[datasets.IterableDataset]:
    """Of tables, and of a generator: `datasets` reads them in different ways."""
    generated = datasets.IterableDataset.from_generator(lambda: iter(rows()), features=FEATURES)
    return [table().to_iterable_dataset(num_shards=2), generated]


def grey(row: dict[str, Any]) -> dict[str, Any]:
    return {"image": row["image"].convert("L"), "text": row["text"].upper()}


async def louder(row: dict[str, Any]) -> dict[str, Any]:
    return {"text": row["text"].upper()}


needs_guards = pytest.mark.skipif(not GUARDS, reason="this version of datasets makes tables of all rows")

# Nobody looks at the images: they stay as they are, and none is decoded.
UNSEEN: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda s: s,
    "rename_column": lambda s: s.rename_column("text", "caption"),
    "rename_columns": lambda s: s.rename_columns({"text": "caption", "image": "photo"}).rename_column(
        "photo", "image"
    ),
    "select_columns": lambda s: s.rename_column("text", "caption").select_columns(["image"]),
    "remove_columns": lambda s: s.remove_columns(["text"]),
    "add_column": lambda s: s.add_column("k", list(range(N))),
    "map": lambda s: s.map(lambda row: {"text": row["text"].upper()}),
    "map of batches": lambda s: s.map(lambda b: {"text": [t.upper() for t in b["text"]]}, batched=True, batch_size=4),
    "asynchronous map": lambda s: s.map(louder),
    "filter": lambda s: s.filter(lambda row: "a" in row["text"]),
    "filter of batches": lambda s: s.filter(lambda b: [bool(t) for t in b["text"]], batched=True, batch_size=4),
    "tables": lambda s: s.with_format("arrow").map(lambda tables: tables),
    "decode in threads": lambda s: s.decode(num_threads=2),  # as `load_dataset` does with streams from the Hub
    "decode in threads, map": lambda s: s.decode(num_threads=2).map(lambda row: {"n": len(row["text"])}),
    "shuffle": lambda s: s.shuffle(seed=1, buffer_size=3).rename_column("text", "caption").take(N),
    "concatenate": lambda s: datasets.concatenate_datasets([s.take(N).rename_column("text", "caption"), s.skip(N)]),
    "split": lambda s: datasets.distributed.split_dataset_by_node(s.rename_column("text", "caption"), 0, 1),
}

# A function looks at the images.
SEEN: dict[str, Callable[[Any], Any]] = {
    "map": lambda s: s.map(grey),
    "map, typed": lambda s: s.map(grey, features=FEATURES).filter(lambda row: row["text"] != ""),
    "map of batches": lambda s: s.map(lambda b: {"image": [i.convert("L") for i in b["image"]]}, batched=True),
    "map of batches that grow": lambda s: s.map(
        lambda b: {name: [v.copy() if name == "image" else v for v in b[name]] for name in b}, batched=True
    ),
    "map with indices": lambda s: s.map(
        lambda image, k: {"image": image.rotate(90), "k": k}, input_columns=["image"], with_indices=True
    ),
    "map and remove": lambda s: (
        s.map(lambda row: {"photo": row["image"].copy()}, remove_columns=["image"])
        .select_columns(["photo", "text"])
        .rename_column("photo", "image")
    ),
    "filter": lambda s: s.filter(lambda row: row["image"].width > 0),
    "filter of batches": lambda s: s.filter(lambda b: [i.width > 0 for i in b["image"]], batched=True, batch_size=4),
    "filter of columns": lambda s: s.filter(lambda image: image.width > 0, input_columns=["image"]),
    "map after filter": lambda s: s.filter(lambda row: row["image"].width > 0).map(grey).filter(lambda row: True),
    "tensors": lambda s: s.with_format("torch").map(lambda row: {"n": row["image"].sum()}),
    "tensors of batches": lambda s: s.with_format("numpy").map(
        lambda b: {"n": [image.sum() for image in b["image"]]}, batched=True
    ),
    "decode in threads, map": lambda s: s.decode(num_threads=2).map(grey),
}


@needs_guards
@pytest.mark.parametrize("name", UNSEEN)
def test_images_that_no_function_looks_at_stay_encoded(name, monkeypatch):
    for stream in streams():
        changed = UNSEEN[name](stream)
        monkeypatch.setattr(lazy, "open_image", None)  # to decode is an error
        read = list(StreamedRows(changed, "image"))
        monkeypatch.undo()
        order = [row["image"]["bytes"] for row in read]
        assert sorted(order) == sorted(row["image"]["bytes"] for row in rows())
        assert name == "shuffle" or order == [row["image"]["bytes"] for row in rows()]
        assert not any(name.startswith("__") for row in read for name in row)


@needs_guards
@pytest.mark.parametrize("name", SEEN)
def test_a_row_for_which_a_function_raises_is_broken_and_keeps_its_place(name):
    for stream in streams():
        read = list(StreamedRows(SEEN[name](stream), "image"))
        assert [row["example_id"] for row in read] == list(range(N))
        assert [isinstance(row, BrokenRow) for row in read] == [k == BAD for k in range(N)]
        assert read[BAD].reason.startswith("the image is in no format that is read here")
        assert all("image" in dict(row) and "__kept__" not in row for k, row in enumerate(read) if k != BAD)


@needs_guards
def test_errors_of_a_function_break_single_rows_and_filters_keep_their_word():
    def picky(row):
        if row["text"] == "":
            raise ZeroDivisionError("half\ud83d\n of a character")
        return row["text"] != "no"

    texts = ["a", "", "no", "b"]
    stream = datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset()
    for changed in (stream.filter(picky), stream.map(lambda row: {"n": 1}).filter(picky)):
        read = list(StreamedRows(changed))
        assert [row.reason if isinstance(row, BrokenRow) else row["text"] for row in read] == [
            "a",
            "the row cannot be read (ZeroDivisionError: half\\ud83d of a character)",
            "b",
        ]


@needs_guards
@pytest.mark.parametrize("batched", [False, True])
def test_columns_are_removed_from_rows_that_were_filtered(batched):
    for stream in streams():
        changed = stream.filter(lambda row: row["image"].width > 0).map(batched=batched, remove_columns=["text"])
        read = list(StreamedRows(changed, "image"))
        assert [isinstance(row, BrokenRow) for row in read] == [k == BAD for k in range(N)]
        assert not any("text" in dict(row) for row in read)


@needs_guards
def test_a_batch_that_grows_is_computed_row_by_row_if_one_of_them_is_broken():
    def twice(batch):
        return {name: [v for value in values for v in (value, value)] for name, values in copies(batch).items()}

    def copies(batch):
        return {**batch, "image": [image.copy() for image in batch["image"]]}

    for stream in streams():
        read = list(StreamedRows(stream.map(twice, batched=True), "image"))
        assert len(read) == 2 * N - 1 and [isinstance(row, BrokenRow) for row in read].index(True) == 2 * BAD


def test_a_column_that_is_not_there_is_no_matter_of_one_row():
    stream = datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset().map(lambda row: {"n": 1})
    with pytest.raises(ValueError, match="columns {'words'} are not in the dataset"):
        list(StreamedRows(stream.rename_column("words", "text")))


@needs_guards
def test_values_that_do_not_fit_the_features_are_broken():
    made = [{"image": b"", "n": 1}, {"image": 5, "n": 1}, {"image": None, "n": "many"}, {"image": {}, "n": 2}]
    features = datasets.Features({"image": datasets.Image(), "n": datasets.Value("int64")})
    stream = datasets.IterableDataset.from_generator(lambda: iter(made), features=features)
    for changed in (stream, stream.rename_column("n", "m"), stream.filter(lambda row: True)):
        read = list(StreamedRows(changed, "image"))
        assert isinstance(read[2], BrokenRow) and "invalid literal for int()" in read[2].reason
        for row in (read[0], read[1], read[3]):
            with pytest.raises(BrokenImage):
                decode_pixels(row["image"])


@needs_guards
@pytest.mark.parametrize("n_workers", [1, 2])
def test_loader_workers_and_epochs(n_workers):
    for stream in streams():
        data = stream.shuffle(seed=3, buffer_size=2).map(grey).filter(lambda row: row["image"].width > 0)
        read = StreamedRows(data, "image")
        for epoch in (0, 1):
            read.set_epoch(epoch)
            loaded = [row for batch in DataLoader(read, None, num_workers=n_workers) for row in [batch]]
            assert sum(isinstance(row, BrokenRow) for row in loaded) == 1 and len(loaded) == N


@needs_guards
def test_the_stream_of_the_caller_is_left_alone_and_its_state_is_resumed():
    stream = streams()[1].map(grey)
    data = undecoded(stream)
    with pytest.raises(OSError, match="cannot identify"):
        list(stream)
    whole = [row["text"] for row in data]
    first = iter(data)
    begun = [next(first)["text"] for _ in range(4)]
    state = data.state_dict()
    data.load_state_dict(state)
    assert begun + [row["text"] for row in data] == whole and len(whole) == N


# Webdataset: a column for each format


def shard(path: Any, suffixes: list[str]) -> str:
    with tarfile.open(path, "w") as archive:
        for number, suffix in enumerate(suffixes):
            image = Image.new("RGB", (8, 6), (10 * number, 0, 0))
            data = encode(image, {"jpg": "JPEG", "seg.png": "PNG"}.get(suffix, suffix.upper()))
            for name, content in ((f"{number:03d}.txt", b"a star"), (f"{number:03d}.{suffix}", data)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return str(path)


MIXED = ["jpg"] * 5 + ["png", "webp", "PNG", "seg.png"]


@needs_guards
@pytest.mark.parametrize(
    "change",
    [
        lambda s: s,
        lambda s: s.rename_column("jpg", "image"),
        lambda s: s.select_columns(["jpg"]),
        lambda s: s.map(lambda row: {"text": row["txt"]}),
    ],
)
def test_a_streamed_webdataset_keeps_images_of_formats_that_come_later(tmp_path, change):
    path = shard(tmp_path / "a.tar", MIXED)
    stream = change(datasets.load_dataset("webdataset", data_files=[path], split="train", streaming=True))
    column = "image" if "image" in (stream.column_names or ()) else "jpg"
    reds = [image_of(row[column]) for row in StreamedRows(stream, column)]
    assert reds == [0, 10, 20, 30, 40, 50, 60, 70, None]  # `seg.png` may be any other image


def image_of(value: Any) -> int | None:
    return None if value is None else 10 * round(decode_pixels(value)[..., 0].mean() / 10)


def test_a_webdataset_on_this_disk_has_all_formats(tmp_path):
    path = shard(tmp_path / "a.tar", MIXED)
    for column in ("jpg", "png"):
        reds = [image_of(row[column]) for row in Rows(load_source(path), column)]
        assert reds == [0, 10, 20, 30, 40, 50, 60, 70, None]
    assert "png" not in load_source(shard(tmp_path / "b.tar", ["jpg"] * 6)).features


def test_a_rows_own_column_comes_first():
    (row,) = Rows([{"jpg": b"one", "png": b"other"}], "jpg")
    assert row["jpg"] == b"one"
    (row,) = Rows([{"image": None, "png": b"other"}], "image")
    assert row["image"] is None


# The mode of a feature


@needs_guards
@pytest.mark.parametrize("mode", ["L", "RGB", "1", "CMYK", None])
def test_the_mode_of_a_feature_is_that_of_the_pixels(mode):
    images = [Image.new("RGBA", (6, 4), (200, 30, 9, 128)), Image.linear_gradient("L").resize((6, 4))]
    features = datasets.Features({"image": datasets.Image(mode=mode)})
    data = datasets.Dataset.from_dict({"image": [encode(image) for image in images]}, features=features)
    expected = [decode_pixels(row["image"]) for row in data]  # decoded by `datasets`
    stream = data.to_iterable_dataset()
    sources = [Rows(data, "image"), Rows(Subset(data, [0, 1])), StreamedRows(stream), StreamedRows(stream.map(len_))]
    for source in sources:
        read = list(source)
        assert [row["image"].get("mode") for row in read] == [mode, mode]
        assert all(np.array_equal(decode_pixels(row["image"]), one) for row, one in zip(read, expected, strict=True))
    assert (content_of(read[0]["image"]) == content_of({**read[0]["image"], "mode": None})) is (mode is None)


def len_(row: dict[str, Any]) -> dict[str, Any]:
    return {"n": len(row)}


def test_a_mode_that_pil_has_not_breaks_the_row():
    with pytest.raises(BrokenImage, match="cannot be decoded"):
        decode_pixels({**random_rows(1)[0]["image"], "mode": "greyish"})


@needs_guards
def test_images_that_cannot_be_converted_break_their_rows_also_where_tensors_are_made_of_them(monkeypatch):
    monkeypatch.setattr(Image.Image, "getexif", lambda image: {}["damaged"])
    made = undecoded(table().to_iterable_dataset().with_format("numpy").map(lambda row: {"n": len(row["image"])}))
    found = list(StreamedRows(made))
    assert len(found) == N and all(isinstance(row, BrokenRow) for row in found)


def test_the_mode_of_a_jpeg_is_simplejpegs_too():
    jpeg = encode(random_image(64, 64, np.random.default_rng(0)), "JPEG")
    grey_pixels = decode_pixels({"bytes": jpeg, "path": None, "mode": "L"})
    assert np.array_equal(grey_pixels, decode_pixels(Image.open(io.BytesIO(jpeg)).convert("L")))
    assert np.array_equal(decode_pixels({"bytes": jpeg, "path": None, "mode": "RGB"}), decode_pixels(jpeg))


# A lazy image is the image


def test_a_lazy_image_becomes_what_datasets_would_give():
    exif = Image.Exif()
    exif[274] = 6
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    for data in (encode(image), encode(image, "JPEG"), encode(image, "JPEG", exif=exif), encode(image.convert("P"))):
        value = {"bytes": data, "path": None}
        for mode in (None, "L"):
            true = datasets.Image(mode=mode).decode_example(value)
            uses: list[Callable[[Image.Image], Any]] = [
                lambda one: (one.size, one.mode, one.format, one.info.keys()),
                lambda one: np.asarray(one).tolist(),
                lambda one: one.resize((3, 3)).tobytes(),
                lambda one: one.copy().tobytes(),
                lambda one: pickle.loads(pickle.dumps(one)).tobytes(),
                lambda one: (one.load(), one.tobytes())[1],
                lambda one, true=true: one == true,
            ]
            for use in uses:
                lazy_one = LazyImage(value, mode)
                assert isinstance(lazy_one, Image.Image) and use(lazy_one) == use(true)
                assert type(lazy_one) is LazyImage or type(lazy_one) is type(true)
                lazy_one.load()
                assert type(lazy_one) is type(true)


def test_a_broken_lazy_image_says_why_whenever_it_is_used():
    image = LazyImage({"bytes": encode(Image.new("RGB", (4, 4)), "EPS"), "path": None})  # starts no Ghostscript
    for _ in range(2):
        with pytest.raises(BrokenImage, match="no format that is read here"):
            image.convert("L")
    with pytest.raises(BrokenImage, match="no format"):
        decode_pixels(image)


def test_a_collator_leaves_a_lazy_image_as_it_is():
    image = LazyImage(GOOD["image"], "L")
    assert np.array_equal(decode_pixels(image), decode_pixels({**GOOD["image"], "mode": "L"}))
    assert type(image) is LazyImage and content_of(image) == content_of({**GOOD["image"], "mode": "L"})
