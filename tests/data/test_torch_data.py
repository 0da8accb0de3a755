# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of torch, and of `datasets` inside of torch: a row that raises or is `None` is that row alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import ChainDataset, ConcatDataset, Subset

from jest_hf import JESTDataCollator
from jest_hf.data.broken import BrokenRow
from jest_hf.data.row_digest import content_digests, digest_rows, digests_of_rows, with_encoded
from jest_hf.data.rows import Rows
from jest_hf.data.streamed_rows import StreamedRows
from jest_hf.evaluation.pairs import CaptionCollator
from jest_hf.reference.compared import DigestingCollator
from tests.data.hostile import Fragile
from tests.data.test_undecoded import BAD, GOOD, N, rows, streams, table
from tests.helpers import tiny_siglip_processor


def test_a_row_of_a_torch_data_set_may_raise_or_be_none():
    data = Fragile([GOOD, ValueError("not this one"), None, KeyError("key"), GOOD])
    for wrapped in (data, Subset(data, range(5)), Subset(Subset(data, range(5)), range(5)), ConcatDataset([data])):
        read = Rows(wrapped, "image").__getitems__([(1, k) for k in range(5)])
        assert [row["example_id"] for row in read] == list(range(5)) and {row["epoch"] for row in read} == {1}
        reasons = [row.reason for row in read if isinstance(row, BrokenRow)]
        assert reasons[0] == "the row cannot be read (ValueError: not this one)"
        assert reasons[1] == "the data set returns None for the row" and "KeyError" in reasons[2]
        batch = JESTDataCollator(tiny_siglip_processor())(read)
        assert batch["valid"].tolist() == [True, False, False, False, True]
        assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][4])


def test_no_memory_ends_the_run():
    with pytest.raises(MemoryError):
        Rows(Fragile([MemoryError()]))[0]


def test_rows_that_cannot_be_read_come_first_or_alone():
    collator = JESTDataCollator(tiny_siglip_processor())
    for read, valid in (([None, GOOD], [False, True]), ([None, None], [False, False])):
        assert collator(Rows(Fragile(read)).__getitems__([0, 1]))["valid"].tolist() == valid


def test_a_subset_of_a_dataset_is_read_undecoded():
    data = table()
    first, last, indices = rows()[0], rows()[5], [0, BAD, -1]
    for wrapped in (
        Subset(data, indices),
        Subset(Subset(data, [5, BAD, 0]), [2, 1, 0]),
        ConcatDataset([Subset(data, [0, BAD]), data.select([5])]),
        Subset(ConcatDataset([data, data]), [N, BAD, 5]),
    ):
        read = list(Rows(wrapped, "image"))
        assert [row["image"]["bytes"] for row in read] == [first["image"]["bytes"], b"broken", last["image"]["bytes"]]
        assert [row["example_id"] for row in read] == [0, 1, 2]
    assert isinstance(Rows(Subset(data, indices)).dataset, datasets.Dataset)
    with pytest.raises(ValueError, match="image_column='picture' is not a column"):
        Rows(ConcatDataset([data]), "picture")


def test_a_transform_that_raises_breaks_one_row():
    def shrunk(batch):
        return {"image": [image.resize((4, 4)) for image in batch["image"]], "text": batch["text"]}

    read = Rows(table().with_transform(shrunk), "image").__getitems__([0, 1, BAD, 3])
    assert [isinstance(row, BrokenRow) for row in read] == [False, False, True, False]
    assert read[3]["image"].size == (4, 4) and "UnidentifiedImageError" in read[2].reason


def test_other_media_and_lists_of_images_are_not_decoded():
    value = {"bytes": b"broken", "path": None}
    features = datasets.Features({"image": datasets.Image(), "views": datasets.List(datasets.Image())})
    features["sound"] = datasets.Value("binary")
    data = datasets.Dataset.from_list([{"image": value, "views": [value], "sound": b"broken"}], features=features)
    data = data.cast_column("sound", datasets.Audio())
    for read in (Rows(data), StreamedRows(data.to_iterable_dataset())):
        (row,) = read
        assert row["image"] == value and row["sound"]["bytes"] == b"broken" and len(row["views"]) == 1
    assert data.features["views"].feature.decode and data.features["sound"].decode  # the caller's are as they were


class Steps(torch.utils.data.IterableDataset):
    """Its iterator goes on after an error, as that of a generator cannot."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return _Steps(self.rows)


class _Steps:
    def __init__(self, rows: list[Any]) -> None:
        self.rest = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        row = next(self.rest)
        if isinstance(row, Exception):
            raise row
        return row


def test_an_iterator_goes_on_and_a_generator_says_what_to_do():
    read = list(StreamedRows(Steps([GOOD, OSError("gone"), None, GOOD]), "image"))
    assert [isinstance(row, BrokenRow) for row in read] == [False, True, True, False]
    assert [row["example_id"] for row in read] == [0, 1, 2, 3]

    class Generated(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield GOOD
            raise OSError("gone")

    with pytest.raises(RuntimeError, match=r"the stream is a generator.*OSError: gone.*yield None"):
        list(StreamedRows(Generated()))


def test_streams_of_datasets_in_a_chain_of_torch():
    chained = ChainDataset(streams())
    read = list(StreamedRows(chained, "image"))
    assert [row["image"]["bytes"] == b"broken" for row in read] == 2 * [k == BAD for k in range(N)]


def test_digests_pass_over_rows_that_cannot_be_read():
    read = Rows(Fragile([None, {**GOOD, "image": "no/such.png"}, {"image": GOOD["image"], "caption": "a star"}]))
    found = content_digests([with_encoded(row, "image") for row in read], "image")
    assert found[0].tolist() == [0, 0] and found[2, 0] != 0
    named = content_digests(list(read), "image", "caption")
    assert named[2, 1] == content_digests([read[2]], "image")[0, 1] != 0 == found[2, 1]  # `text` is in a row too


def test_a_broken_row_has_a_mark_in_a_digest():
    kinds = ([GOOD, GOOD], [GOOD, None], [None, GOOD], [GOOD, OSError("gone")], [{**GOOD, "text": "other"}, None])
    whole, second, first, raised, other = (digest_rows(Fragile(rows), "image") for rows in kinds)
    assert second == raised and None not in (whole, second) and len({whole, second, first, other}) == 4
    assert digest_rows(Fragile([None, None]), "image") is None
    each, beside = (digests_of_rows(Fragile(rows), "image") for rows in kinds[:2])
    assert each[0] == beside[0] != "" == beside[1] and each[1] != ""

    class Failing(Fragile):  # the second row at its first reading alone
        n = 0

        def __getitem__(self, index: int) -> Any:
            self.n += 1
            return None if self.n == 2 else self.rows[index]

    assert digest_rows(Failing([GOOD, GOOD]), "image") == second


def test_the_bytes_of_a_file_keep_the_mode(tmp_path):
    (tmp_path / "0.png").write_bytes(GOOD["image"]["bytes"])
    row = with_encoded({"image": {"bytes": None, "path": str(tmp_path / "0.png"), "mode": "L"}}, "image")
    assert row["image"]["mode"] == "L" and row["image"]["bytes"] == GOOD["image"]["bytes"]


def test_a_row_that_cannot_be_read_reaches_every_collator():
    collator = JESTDataCollator(tiny_siglip_processor())
    read = list(Rows(Fragile([None, GOOD])))
    assert CaptionCollator(collator, "group")(read)["readable"].tolist() == [False, True]
    digested = DigestingCollator(collator)(read)
    assert digested["readable"].tolist() == [False, True] and len(digested["digest"]) == 1
