# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Loading chosen rows of a stream: the order of batches, what a choice sees, and loaders that end early."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from itertools import islice
from typing import Any

import datasets
import pytest
import torch
from accelerate import skip_first_batches

import jest_hf.data.chosen as chosen_module
from jest_hf.data.chosen import load_chosen
from jest_hf.data.stream import load_stream
from jest_hf.distributed import Ranks
from tests.distributed.processes import run


LENGTHS = (5, 26, 12, 0, 19, 9)  # of six shards: workers run out of rows at different times


def generate(shards):
    for start, stop in shards:
        for number in range(start, stop):
            yield {"image": None, "text": "a star", "example_id": 7 * number}


def stream(lengths=LENGTHS):
    starts = [sum(lengths[:shard]) for shard in range(len(lengths))]
    shards = [(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    generator = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": shards})
    return generator.shuffle(seed=3, buffer_size=4)


def collate(rows):
    return {name: torch.tensor([row[name] for row in rows]) for name in ("example_id", "epoch")}


def listed(batches):
    return [{name: value.tolist() for name, value in batch.items()} for batch in batches]


class Every:
    """Chooses all rows of each rank, last row first, and remembers what it was asked."""

    def __init__(self, rank=0):
        self.asked: list[Any] = []
        self.rank = rank

    def __call__(self, ids, epoch, step):
        self.asked.append((ids[self.rank].tolist(), epoch, step))
        return list(range(ids.shape[1]))[::-1]


@pytest.mark.parametrize("n_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_the_super_batches_are_those_of_the_plain_loader(n_workers, prefetch):
    options = {"num_workers": n_workers} | ({"prefetch_factor": prefetch} if n_workers else {})
    n = 40  # several passes
    plain = listed(islice(load_stream(stream(), collate, 4, **options), n))
    assert plain[-1]["epoch"][0] > 1
    choose = Every()
    found = listed(islice(load_chosen(stream(), collate, 4, choose, **options), n))
    assert found == [{name: values[::-1] for name, values in batch.items()} for batch in plain]
    asked = [(batch["example_id"], batch["epoch"][0], step) for step, batch in enumerate(plain, start=1)]
    assert choose.asked[:n] == asked
    assert len(choose.asked) <= n + 1 + max(1, n_workers) * prefetch  # no further ahead than the workers


def test_chosen_rows_are_decoded_and_others_are_not():
    seen = []

    def spy(rows):
        seen.append([row["example_id"] for row in rows])
        return collate(rows)

    batches = islice(load_chosen(stream(), spy, 6, lambda ids, epoch, step: [step % 6, 0], num_workers=0), 5)
    assert [batch["example_id"].tolist() for batch in batches] == seen[:5]
    assert all(len(ids) == 2 for ids in seen) and len(seen) <= 6


def test_no_chosen_row_gives_a_batch_without_rows():
    loader = load_chosen(stream(), collate, 6, lambda ids, epoch, step: [] if step == 2 else [1])
    shapes = [{name: (tuple(v.shape), v.dtype) for name, v in batch.items()} for batch in islice(loader, 3)]
    one, none = (dict.fromkeys(("example_id", "epoch"), ((n,), torch.int64)) for n in (1, 0))
    assert shapes == [one, none, one]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_skipped_batches_lead_to_the_same_rows(n_workers):
    whole = listed(islice(load_chosen(stream(), collate, 4, Every(), num_workers=n_workers), 30))
    for skipped in (1, 22):
        loader = skip_first_batches(load_chosen(stream(), collate, 4, Every(), num_workers=n_workers), skipped)
        assert listed(islice(loader, 30 - skipped)) == whole[skipped:]


def test_a_loader_that_is_left_early_ends_its_workers_at_once():
    loader = load_chosen(stream((400, 400)), collate, 4, Every(), num_workers=2)
    batches = iter(loader)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) >= 2
    start = time.perf_counter()
    batches.close()  # as the Trainer leaves it, in the middle of a pass, with workers that wait for a choice
    del batches
    assert time.perf_counter() - start < 4  # torch kills after 5 seconds what does not end
    assert not any(worker.is_alive() for worker in workers)


def test_an_error_in_a_choice_comes_out_and_ends_the_workers():
    def refuse(ids, epoch, step):
        raise ValueError("no such row")

    start = time.perf_counter()
    with pytest.raises(ValueError, match="no such row"):
        next(iter(load_chosen(stream(), collate, 4, refuse, num_workers=2)))
    gc.collect()
    assert time.perf_counter() - start < 4


def test_a_stream_too_short_is_an_error():
    with pytest.raises(ValueError, match="the stream ended before every rank had a super-batch of 72 rows"):
        next(iter(load_chosen(stream(), collate, 72, Every())))


def test_a_worker_does_not_outlive_the_training_process(tmp_path, monkeypatch):
    monkeypatch.setattr(chosen_module, "PATIENCE", 0.1)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_die, args=(tmp_path / "pid",))
    process.start()
    process.join(30)
    assert process.exitcode == 9
    worker, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 20
    while os.path.exists(f"/proc/{worker}") and _state(worker) != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}") or _state(worker) == "Z"


def _state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def _die(file):
    """Iterate until a worker waits for a choice, and end without any clean-up."""

    def choose(ids, epoch, step):
        (worker,) = multiprocessing.active_children()
        file.write_text(str(worker.pid))
        os._exit(9)

    next(iter(load_chosen(stream((400,)), collate, 4, choose, num_workers=1, multiprocessing_context="fork")))


def _read(n_workers, n_batches):
    options = {}
    if n_workers > 0:
        # A daemon, as which the ranks of these tests run, may have no children, and loader workers are children.
        multiprocessing.current_process()._config["daemon"] = False
        options = {"num_workers": n_workers, "multiprocessing_context": "fork", "persistent_workers": True}
    ranks = Ranks.world()
    plain = listed(islice(load_stream(stream(), collate, 3, ranks=ranks, **options), n_batches))
    choose = Every(ranks.rank)
    found = listed(islice(load_chosen(stream(), collate, 3, choose, ranks=ranks, **options), n_batches))
    return plain, found, choose.asked


@pytest.mark.parametrize("n_workers", [0, 2])
def test_ranks_whose_parts_differ_end_a_pass_together(n_workers):
    """36 rows on one rank and 35 on the other, in shards of other lengths."""
    n_batches = 24
    for plain, found, asked in run(2, _read, n_workers, n_batches):
        assert plain[-1]["epoch"][0] > 0
        assert found == [{name: values[::-1] for name, values in batch.items()} for batch in plain]
        assert [ids for ids, _, _ in asked][:n_batches] == [batch["example_id"] for batch in plain]
        assert [step for _, _, step in asked] == list(range(1, len(asked) + 1))
