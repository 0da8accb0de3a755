# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A stream goes on where a run was, in one process: the same rows, and few of them read again."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from itertools import islice, product
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from jest_hf.data.continued import BlockShuffled, continued
from jest_hf.data.position import Position, load_position, save_position
from jest_hf.data.streamed_rows import StreamedRows
from tests.data.resumed_streams import KINDS, READ, Kinds, check, choose, collate, generate, load, read


N, SHARD, BUFFER, SIZE = 480, 20, 24, 8
STEPS = (5, 50, 500)


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch):
    """datasets 5 sleeps for 5 seconds whenever a stream of Parquet files is left, for its threads to end."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def kinds(folder: Path) -> Kinds:
    return Kinds(folder, N, SHARD, BUFFER)


@pytest.mark.parametrize("form", ["plain", "chosen"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_with_the_next_row_and_reads_few_rows_again(tmp_path, kind, form):
    reads = check(getattr(kinds(tmp_path), kind), form, STEPS, tmp_path, SIZE)
    sources = 2 if "interleaved" in kind else 1
    # A block of each source, the rows of the shards before it (`shuffle` reads up to ten shards at a time), what
    # `datasets` reads ahead and again (two items of each shard: rows, or tables of a Parquet file, here whole files),
    # and the super-batches: two where rows are chosen.
    n_shards = 1 if kind in ("generator", "concatenated", "interleaved") else 10
    ahead = 2 * SHARD if kind == "parquet" else 2
    most = sources * (n_shards * (SHARD + ahead) + (BUFFER if n_shards > 1 else 0)) + 2 * SIZE
    assert all(0 < n <= most for n in reads.values()), reads
    assert SIZE * STEPS[-1] > 3 * most  # what a run without positions would read


@pytest.mark.parametrize("form", ["plain", "chosen"])
@pytest.mark.parametrize("kind", ["concatenated", "interleaved_of_shuffled", "parquet"])
def test_loader_workers_go_on_each_from_its_own_place(tmp_path, kind, form):
    options: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True}
    check(getattr(kinds(tmp_path), kind), form, (5, 50), tmp_path, SIZE, **options)


def test_three_workers_that_end_at_different_times(tmp_path):
    """The pass ends in the middle of what is read after the resume, and each worker takes its turn."""
    stream = datasets.IterableDataset.from_generator(
        generate, gen_kwargs={"shards": [(0, 5), (5, 31), (31, 43), (43, 43), (43, 62), (62, 71)]}
    )
    options: dict[str, Any] = {"num_workers": 3, "multiprocessing_context": "fork"}
    stream = stream.shuffle(seed=3, buffer_size=4)
    check(lambda: stream, "plain", (7, 8, 21), tmp_path, 3, more=6, **options)  # 23 super-batches in a pass


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_position_goes_on_from_a_position(tmp_path, n_workers):
    """A run that is resumed twice: the second checkpoint is one of a run that was resumed."""
    make = kinds(tmp_path).interleaved_of_shuffled
    options: dict[str, Any] = {"num_workers": n_workers, "multiprocessing_context": "fork"} if n_workers else {}
    whole, positions = read(load("plain", make(), SIZE, **options), 40, (7,))
    loader = load("plain", make(), SIZE, n_skipped=7, start=positions[7], **options)
    _, second = read(loader, 6, (13,), skipped=7)
    found, _ = read(load("plain", make(), SIZE, n_skipped=13, start=second[13], **options), 20, skipped=13)
    assert found == whole[13:33]


def test_positions_are_small_and_only_the_last_are_kept(tmp_path):
    loader = load("plain", kinds(tmp_path).shuffled(), SIZE)
    read(loader, 30)
    positions = loader.dataset.positions
    assert 30 in positions and len(positions) <= 5
    save_position(positions[30], tmp_path, 0)
    assert (tmp_path / "stream_position_0.json").stat().st_size < 4096


def test_without_a_position_rows_are_read_again_in_the_order_of_before_and_not_decoded():
    """A checkpoint of an earlier version, which shuffled as `datasets` does."""
    stream = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": [(0, 30), (30, 60), (60, 90)]})
    stream = stream.shuffle(seed=3, buffer_size=20)
    before = []
    for epoch in (0, 1, 2):
        rows = StreamedRows(stream)
        rows.set_epoch(epoch)
        order = [row["number"] for row in rows]
        before += [order[start : start + SIZE] for start in range(0, 90 - SIZE + 1, SIZE)]
    for form, n_workers in product(("plain", "chosen"), (0, 2)):
        loader = load(form, stream, SIZE, n_skipped=27, num_workers=n_workers)
        loader.dataset.worker_rows.collator = decoded = _Counted()
        found, _ = read(loader, 4, skipped=27)
        assert loader.dataset.positions == {}
        assert found[-1]["epoch"][0] >= 2
        if n_workers == 0:
            assert 0 < decoded.n.value <= 4 + 1  # accelerate takes one super-batch more
            kept = [choose(torch.zeros(1, SIZE), 0, step) for step in range(28, 32)]
            wanted = before[27:31]
            if form == "chosen":
                wanted = [[rows[place] for place in places] for rows, places in zip(wanted, kept, strict=True)]
            assert [batch["number"] for batch in found] == wanted
        else:
            assert 0 < decoded.n.value <= 4 + 1 + 2 * 2 + 2  # and workers read ahead


class _Counted:
    """Counts super-batches that are collated, in loader workers too."""

    def __init__(self) -> None:
        self.n = multiprocessing.Value("i", 0)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        with self.n.get_lock():
            self.n.value += 1
        return collate(rows)


class Numbers(IterableDataset):
    def __iter__(self):
        return generate([(0, 50)])


def test_a_torch_stream_has_no_position_and_is_read_again():
    whole, _ = read(load("plain", Numbers(), SIZE), 20)
    loader = load("plain", Numbers(), SIZE)
    read(loader, 15)
    assert loader.dataset.positions == {}
    assert read(load("plain", Numbers(), SIZE, n_skipped=15), 5, skipped=15)[0] == whole[15:]


# ---- Blocks ----


def numbers(stream: datasets.IterableDataset, epoch: int = 0) -> list[int]:
    stream = continued(stream)
    stream.set_epoch(epoch)
    return [row["number"] for row in stream]


def table(n: int, shards: int = 1) -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"number": list(range(n))}).to_iterable_dataset(shards)


@pytest.mark.parametrize("make", [table, lambda n: Kinds(Path(), n, n, 0).generator()], ids=["arrow", "rows"])
def test_a_row_stays_within_its_block_and_blocks_change_with_the_pass(make):
    stream = make(400).shuffle(seed=1, buffer_size=20)
    orders = [numbers(stream, epoch) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    for order in orders:
        assert sorted(order) == list(range(400)) and order != sorted(order)
        assert max(abs(place - number) for place, number in enumerate(order)) < 20 + 20
    ends = [{end for end in range(1, 400) if max(order[:end]) == end - 1} for order in orders]
    assert max(np.diff(sorted(ends[0]))) <= 20 + 2 and ends[0] != ends[1]
    assert all(20 in of_pass and not set(range(20, 400, 20)) <= of_pass for of_pass in ends)  # not all are whole


def test_a_buffer_that_holds_all_rows_shuffles_them_all():
    first = Counter(numbers(table(6).shuffle(seed=seed, buffer_size=6))[0] for seed in range(120))
    assert set(first) == set(range(6)) and max(first.values()) < 40


def test_the_order_of_a_stream_that_is_not_shuffled_stays_as_it_is(tmp_path):
    for kind in ("generator", "concatenated", "interleaved"):
        stream = getattr(kinds(tmp_path), kind)()
        assert numbers(stream) == [row["number"] for row in stream]


def test_a_stream_of_the_user_is_left_as_it_is():
    stream = table(60, 3).shuffle(seed=1, buffer_size=10)
    before = [row["number"] for row in stream]
    assert numbers(stream) != before == [row["number"] for row in stream]
    assert not isinstance(stream._ex_iterable, BlockShuffled)


# ---- What is refused ----


@pytest.mark.parametrize("way", ["shuffle", "inside", "interleave", "seeded"])
def test_a_stream_without_a_seed_is_refused(way):
    probabilities = {"probabilities": [0.5, 0.5]}
    stream = {
        "shuffle": lambda: table(60, 3).shuffle(buffer_size=10),
        "inside": lambda: datasets.concatenate_datasets([table(9), table(60, 3).shuffle().map(lambda row: row)]),
        "interleave": lambda: datasets.interleave_datasets([table(9), table(9)], **probabilities),
        "seeded": lambda: datasets.interleave_datasets(
            [table(9).shuffle(seed=2**63), table(9).shuffle(generator=np.random.default_rng(1))],
            seed=0,
            **probabilities,
        ).shuffle(seed=0),
    }[way]()
    if way == "seeded":
        StreamedRows(stream)
        return
    with pytest.raises(ValueError, match=r"without a seed.*pass a seed below 2\*\*64, such as shuffle\(seed=0"):
        StreamedRows(stream)


def test_the_position_in_another_stream_is_refused(tmp_path):
    _, positions = read(load("plain", kinds(tmp_path).shuffled(), SIZE), 9, (5,))
    for kind in ("generator", "concatenated_and_shuffled", "interleaved"):
        loader = load("plain", getattr(kinds(tmp_path), kind)(), SIZE, n_skipped=5, start=positions[5])
        with pytest.raises(ValueError, match="a stream that is built in another way; build train_dataset as in"):
            read(loader, 1, skipped=5)
    with pytest.raises(ValueError, match="a stream that is built in another way"):
        load("plain", Numbers(), SIZE, n_skipped=5, start=positions[5])


class Three:
    rank, size = 0, 1

    def gather_counts(self, count: int, device: Any = "cpu") -> list[int]:
        return [count]


def test_another_number_of_processes_or_workers_is_refused(tmp_path):
    save_position(Position(4, 0, 0, 2, 2, 0, [None, None]), tmp_path, 0)
    ranks: Any = Three()
    with pytest.raises(ValueError, match="read its stream with 2 processes, and this one has 1.*start 2 processes"):
        load_position(tmp_path, ranks, 2)
    save_position(Position(4, 0, 0, 1, 2, 0, [None, None]), tmp_path, 0)
    for n_workers in (0, 1, 3):
        with pytest.raises(
            ValueError, match=f"num_workers={n_workers}: .* with 2 loader.*set dataloader_num_workers=2"
        ):
            load_position(tmp_path, ranks, n_workers)
    save_position(Position(4, 0, 0, 1, 0, 0, [None]), tmp_path, 0)
    with pytest.raises(ValueError, match="dataloader_num_workers=1: .*set dataloader_num_workers=0"):
        load_position(tmp_path, ranks, 1)  # whose rows come in another order than without workers
    save_position(Position(4, 0, 0, 1, 2, 0, [None, None]), tmp_path, 0)
    assert load_position(tmp_path, ranks, 2) == Position(4, 0, 0, 1, 2, 0, [None, None])
    assert load_position(tmp_path / "nowhere", ranks, 2) is None


def test_states_of_numpy_generators_can_be_saved(tmp_path):
    """MT19937 has an array in its state."""
    generator = np.random.Generator(np.random.MT19937(5))
    parts = [table(40), table(40)]
    stream = datasets.interleave_datasets(parts, probabilities=[0.5, 0.5], seed=1)
    stream._ex_iterable.generator = generator
    check(lambda: stream, "plain", (3,), tmp_path, SIZE, more=5)
    assert "MT19937" in json.dumps(json.loads((tmp_path / "3" / "stream_position_0.json").read_text()))


def test_rows_are_counted():
    READ.value = 0
    list(islice(generate([(0, 9)]), 4))
    assert READ.value == 4
