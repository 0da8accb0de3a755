# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Streams in one process: ids, epochs and errors. Several ranks: tests/distributed/test_stream.py."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import datasets
import pytest
import torch
from accelerate import skip_first_batches
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from jest_hf import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.data.stream import load_stream
from jest_hf.data.streamed_rows import StreamedRows, is_stream
from tests.helpers import random_rows, tiny_siglip_processor


N = 12


def table() -> datasets.Dataset:
    return datasets.Dataset.from_list(random_rows(N)).cast_column("image", datasets.Image())


def stream(shards: int = 3) -> datasets.IterableDataset:
    return table().to_iterable_dataset(num_shards=shards)


class TorchStream(torch.utils.data.IterableDataset):
    def __init__(self, rows: list[Any]) -> None:
        self.rows, self.epochs = rows, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def ids(rows: Iterator[dict[str, Any]]) -> list[int]:
    return [row["example_id"] for row in rows]


def tokens(batches: list[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [batch["example_id"].tolist() for batch in batches]


@pytest.mark.parametrize("make", [stream, lambda: TorchStream(random_rows(N))])
def test_rows_are_those_of_the_table_with_labels(make):
    rows = StreamedRows(make(), "image")
    assert list(rows) == list(Rows(table()))
    assert is_stream(make()) and not is_stream(table())


def test_a_format_does_not_change_the_rows_and_images_stay_encoded():
    data = stream().with_format("torch")
    assert list(StreamedRows(data)) == list(StreamedRows(stream()))
    assert data.features["image"].decode  # the caller's stream is as it was


def test_a_corrupt_file_does_not_end_the_stream():
    broken = [{"image": {"bytes": b"broken", "path": None}, "text": "a red star"}]
    data = datasets.Dataset.from_list(broken).cast_column("image", datasets.Image()).to_iterable_dataset()
    assert [row["image"]["bytes"] for row in StreamedRows(data)] == [b"broken"]


def test_a_generators_rows_of_unknown_features_pass_through():
    data = datasets.IterableDataset.from_generator(lambda: iter(random_rows(3)))
    assert [row["text"] for row in StreamedRows(data, "image")] == [row["text"] for row in random_rows(3)]


@pytest.mark.parametrize("column", [[7 * index + 2 for index in range(N)], [f"row {index}" for index in range(N)]])
def test_ids_of_their_own_are_kept_where_they_are_numbers(column):
    rows = StreamedRows(table().add_column("example_id", column).to_iterable_dataset())
    assert ids(rows) == (column if isinstance(column[0], int) else list(range(N)))


@pytest.mark.parametrize("n_workers, persistent", [(0, False), (2, False), (2, True)])
def test_the_epoch_reaches_the_shuffling_and_loader_workers(n_workers, persistent):
    data = table().add_column("example_id", list(range(N))).to_iterable_dataset(num_shards=4)
    rows = StreamedRows(data.shuffle(seed=5, buffer_size=4))
    loader = DataLoader(rows, batch_size=3, collate_fn=list, num_workers=n_workers, persistent_workers=persistent)
    orders = {}
    for epoch in (0, 1, 0):
        rows.set_epoch(epoch)
        read = [row for batch in loader for row in batch]
        assert {row["epoch"] for row in read} == {epoch}
        assert sorted(ids(read)) == list(range(N))
        assert orders.setdefault(epoch, ids(read)) == ids(read)
    assert orders[0] != orders[1]


def test_workers_leave_the_epoch_that_they_share_alone(monkeypatch):
    """`set_epoch` adds a difference to a number in shared memory, so two workers at once would set a wrong epoch."""
    rows = StreamedRows(datasets.Dataset.from_list(random_rows(8)).to_iterable_dataset().shuffle(seed=1))
    rows.set_epoch(3)
    monkeypatch.setattr(datasets.IterableDataset, "set_epoch", None)
    assert {row["epoch"] for row in rows} == {3} and rows.dataset.epoch == 3


def test_a_torch_stream_hears_of_the_epoch():
    data = TorchStream(random_rows(2))
    rows = StreamedRows(data)
    rows.set_epoch(3)
    list(rows)
    assert data.epochs == [3]


def collator() -> JESTDataCollator:
    return JESTDataCollator(tiny_siglip_processor())


def test_passes_follow_each_other_and_incomplete_super_batches_are_dropped():
    loader = load_stream(stream(), collator(), 5, image_column="image")
    batches = list(islice(loader, 5))
    assert tokens(batches) == 2 * [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]] + [[0, 1, 2, 3, 4]]
    assert all(batch["valid"].all() and batch["pixel_values"].dtype == torch.uint8 for batch in batches)
    with pytest.raises(TypeError):
        len(loader)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_skipped_batches_lead_to_the_same_rows_in_any_pass(n_workers):
    data = table().add_column("example_id", list(range(N))).to_iterable_dataset(num_shards=4)
    data = data.shuffle(seed=1, buffer_size=3)
    whole = tokens(islice(load_stream(data, collator(), 3, num_workers=n_workers), 11))
    assert len({str(batch) for batch in whole}) > 6  # the passes differ
    for skipped in (1, 6):
        loader = skip_first_batches(load_stream(data, collator(), 3, num_workers=n_workers), skipped)
        assert tokens(islice(loader, 11 - skipped)) == whole[skipped:]


def test_the_trainings_random_numbers_are_left_alone():
    loader = iter(load_stream(stream(), collator(), 6))
    next(loader)
    state = torch.get_rng_state()
    for _ in range(5):
        next(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_too_short_is_an_error_and_no_endless_search():
    with pytest.raises(ValueError, match="the stream ended before every rank had a super-batch of 13 rows"):
        next(iter(load_stream(stream(), collator(), 13)))


def test_what_cannot_be_streamed_is_refused_with_the_way_out():
    class Four:
        rank, size = 1, 4

    cases = [
        (TypeError, lambda: StreamedRows(table()), r"Dataset is not a stream; pass a `datasets\.IterableDataset`"),
        (ValueError, lambda: StreamedRows(stream(), "picture"), "image_column='picture' .*there are: image, text"),
        (TypeError, lambda: next(iter(StreamedRows(TorchStream([(1, 2)])))), "A row of the stream is a tuple"),
        (
            ValueError,
            lambda: StreamedRows(split_dataset_by_node(stream(), 1, 2), None, Four),
            "already split by node.*pass the whole stream",
        ),
        (
            ValueError,
            lambda: next(iter(DataLoader(StreamedRows(TorchStream(random_rows(2))), num_workers=2))),
            "dataloader_num_workers=2 would read every row of a torch IterableDataset 2 times",
        ),
    ]
    for error, act, message in cases:
        with pytest.raises(error, match=message):
            act()
