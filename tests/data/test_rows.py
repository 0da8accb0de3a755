# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows and their order are functions of the key, for every kind of data set."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from jest_hf.data.rows import EpochSampler, Rows, share_batches
from tests.helpers import random_rows


N = 6


def hf_dataset() -> datasets.Dataset:
    return datasets.Dataset.from_list(random_rows(N)).cast_column("image", datasets.Image())


class TorchRows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(random_rows(2))


def test_sampler_is_a_permutation_of_every_epoch():
    sampler = EpochSampler(50, seed=3)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {key[0] for key in keys} == {epoch}
        assert sorted(key[1] for key in keys) == list(range(50))
        assert all(type(key[1]) is int for key in keys)
        orders.append([key[1] for key in keys])
    assert len(sampler) == 50
    assert orders[0] != orders[1] != orders[2]


def test_sampler_depends_on_seed_and_epoch_alone():
    first = list(EpochSampler(50, seed=3))
    torch.manual_seed(1)
    np.random.seed(1)
    state = torch.get_rng_state()
    assert list(EpochSampler(50, seed=3)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert list(EpochSampler(50, seed=4)) != first
    assert len(list(EpochSampler(50, seed=-1))) == 50


def test_seed_and_epoch_are_not_interchangeable():
    one, other = EpochSampler(50, seed=1), EpochSampler(50, seed=2)
    one.set_epoch(2)
    other.set_epoch(1)
    assert [index for _, index in one] != [index for _, index in other]


def test_an_epoch_set_during_a_pass_counts_from_the_next():
    sampler = EpochSampler(4, seed=0)
    keys = iter(sampler)
    next(keys)
    sampler.set_epoch(1)
    assert {epoch for epoch, _ in keys} == {0}


def test_sampler_refuses_an_empty_data_set():
    with pytest.raises(ValueError, match="no rows"):
        EpochSampler(0, seed=0)


@pytest.mark.parametrize("make", [random_rows, lambda n: TorchRows(random_rows(n)), lambda n: hf_dataset()])
def test_every_map_style_data_set_gives_labelled_rows(make):
    rows, expected = Rows(make(N)), random_rows(N)
    assert len(rows) == N
    assert rows[2] == {**expected[2], "example_id": 2, "epoch": 0}
    assert rows[(3, 1)] == {**expected[1], "example_id": 1, "epoch": 3}
    assert rows[np.int64(4)]["example_id"] == 4
    assert rows.__getitems__([(1, 5), (1, 0)]) == [rows[(1, 5)], rows[(1, 0)]]
    assert [row["example_id"] for row in rows] == list(range(N))


def test_the_original_row_is_left_alone():
    data = random_rows(2)
    Rows(data)[0]
    assert set(data[0]) == {"image", "text"}


@pytest.mark.parametrize("key", [N, -1, (0, N)])
def test_a_key_outside_of_the_data_set_is_an_index_error(key):
    with pytest.raises(IndexError, match=f"{N} rows"):
        Rows(random_rows(N))[key]


def test_a_datasets_batch_is_read_once(monkeypatch):
    rows, reads = Rows(hf_dataset()), []
    read = datasets.Dataset.__getitems__
    monkeypatch.setattr(datasets.Dataset, "__getitems__", lambda self, keys: reads.append(keys) or read(self, keys))
    rows.__getitems__([(0, 3), (0, 1), (0, 4)])
    assert reads == [[3, 1, 4]]


@pytest.mark.parametrize("format_type", ["torch", "numpy", "pandas"])
def test_a_format_does_not_change_the_rows(format_type):
    data = hf_dataset()
    assert Rows(data.with_format(format_type))[1] == Rows(data)[1]


def test_image_columns_of_any_name_stay_encoded():
    data = hf_dataset().rename_column("image", "photo")
    rows = Rows(data, image_column="photo")
    assert set(rows[0]["photo"]) == {"bytes", "path"}
    assert data.features["photo"].decode  # the caller's data set is as it was


def test_a_corrupt_file_does_not_break_the_data_set():
    data = datasets.Dataset.from_list([{"image": {"bytes": b"broken", "path": None}, "text": "a red star"}])
    assert Rows(data.cast_column("image", datasets.Image()))[0]["image"]["bytes"] == b"broken"


def test_selected_rows_are_numbered_anew():
    rows = Rows(hf_dataset().select([4, 2]))
    assert rows[1]["text"] == random_rows(N)[2]["text"]
    assert rows[1]["example_id"] == 1


def test_a_users_transform_is_not_broken():
    def transform(batch):
        return {"image": [image.resize((4, 4)) for image in batch["image"]], "text": batch["text"]}

    for data in (hf_dataset().with_transform(transform), hf_dataset()):
        data.set_transform(transform)
        rows = Rows(data, image_column="image")
        assert rows[(2, 1)]["image"].size == (4, 4)
        assert [row["image"].size for row in rows.__getitems__([(0, 1), (0, 2)])] == [(4, 4), (4, 4)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: hf_dataset().to_iterable_dataset(),
        Stream,
        lambda: iter(random_rows(2)),
        lambda: (row for row in random_rows(2)),
        lambda: "scenes:web",
    ],
)
def test_what_is_not_map_style_is_refused_with_the_way_out(make):
    with pytest.raises(TypeError, match=r"IterableDataset.*datasets\.Dataset\.from_generator"):
        Rows(make())


@pytest.mark.parametrize("kind", [dict, datasets.DatasetDict])
def test_of_several_data_sets_one_has_to_be_passed(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__} holds several .*validation, test.*dataset\['validation'\]"):
        Rows(kind({"validation": hf_dataset(), "test": hf_dataset()}))


def test_a_missing_image_column_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="'picture'.*image, text"):
        Rows(hf_dataset(), image_column="picture")


def test_a_row_that_is_no_dict_is_refused():
    with pytest.raises(TypeError, match="Row 1 is a tuple"):
        Rows([{"image": None}, (None, "a red star")])[1]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_the_epoch_reaches_loader_workers(n_workers):
    sampler = EpochSampler(N, seed=0)
    loader = DataLoader(
        Rows(hf_dataset()),
        batch_size=2,
        sampler=sampler,
        num_workers=n_workers,
        collate_fn=list,
        persistent_workers=n_workers > 0,
    )
    for epoch in range(2):
        sampler.set_epoch(epoch)
        rows = [row for batch in loader for row in batch]
        assert [(row["epoch"], row["example_id"]) for row in rows] == list(sampler)


def test_rows_are_picklable_and_show_what_they_are():
    rows = Rows(hf_dataset())
    assert pickle.loads(pickle.dumps(rows))[3] == rows[3]
    assert "n_rows=6" in repr(rows)


@pytest.mark.parametrize("n_rows", [0, 1, 7, 8, 9, 31])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_ranks_share_the_batches_of_one_process_in_order_and_equal_number(n_rows, world_size):
    def share(rank: int) -> list[range]:
        return share_batches(n_rows, 4, SimpleNamespace(rank=rank, size=world_size))

    whole = [list(batch) for batch in share_batches(n_rows, 4)]
    assert whole == [list(range(start, min(start + 4, n_rows))) for start in range(0, n_rows, 4)]
    assert [list(batch) for rank in range(world_size) for batch in share(rank) if len(batch)] == whole
    assert {len(share(rank)) for rank in range(world_size)} == {-(-len(whole) // world_size)}


@pytest.mark.parametrize("make", [random_rows, lambda n: hf_dataset()])
def test_an_empty_batch_reaches_the_collator(make):
    loader = DataLoader(Rows(make(N)), batch_sampler=[range(4, 6), range(0)], collate_fn=list)
    assert [[row["example_id"] for row in batch] for batch in loader] == [[4, 5], []]
