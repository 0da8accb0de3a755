# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A stream over ranks: every row on one rank only, and no rank ahead of the others."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from itertools import islice
from typing import Any

import datasets
import pytest
import torch
from accelerate import skip_first_batches

from jest_hf.data.stream import load_stream
from jest_hf.distributed import Ranks
from tests.distributed.processes import run


LENGTHS = (16, 9, 12, 16, 7, 16, 16, 10)  # of eight shards
TOTAL = sum(LENGTHS)
BATCH = 2


def generate(shards: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for start, stop in shards:
        for number in range(start, stop):
            yield {"image": None, "text": "a star", "number": number}


class Numbers(torch.utils.data.IterableDataset):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        return generate([(0, TOTAL)])


def make(kind: str) -> Any:
    starts = [sum(LENGTHS[:shard]) for shard in range(len(LENGTHS))]
    shards = [(start, start + length) for start, length in zip(starts, LENGTHS, strict=True)]
    generator = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": shards})
    table = datasets.Dataset.from_list(list(generate([(0, TOTAL)])))
    return {
        "generator": generator,
        "shuffled": generator.shuffle(seed=3, buffer_size=10),
        "table of 4 shards": table.to_iterable_dataset(num_shards=4).shuffle(seed=3, buffer_size=10),
        "table of 3 shards": table.to_iterable_dataset(num_shards=3),
        "torch": Numbers(),
    }[kind]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in ("number", "example_id", "epoch")}


def _read(kind: str, n_workers: int, n_batches: int, skipped: int = 0) -> list[dict[str, list[int]]]:
    options = {}
    if n_workers > 0:
        # A daemon, as which the ranks of these tests run, may have no children, and loader workers are children.
        multiprocessing.current_process()._config["daemon"] = False
        options = {"num_workers": n_workers, "multiprocessing_context": "fork", "persistent_workers": True}
    loader = load_stream(make(kind), collate, BATCH, ranks=Ranks.world(), **options)
    batches = islice(skip_first_batches(loader, skipped) if skipped else loader, n_batches)
    return [{name: value.tolist() for name, value in batch.items()} for batch in batches]


@pytest.mark.parametrize(
    "world_size, kind, n_workers",
    [
        (1, "shuffled", 0),
        (2, "generator", 0),
        (2, "shuffled", 2),
        (2, "table of 3 shards", 2),  # shards that ranks cannot share: each reads all and keeps every second row
        (2, "torch", 0),
        (4, "shuffled", 0),
        (4, "table of 4 shards", 0),
        (4, "generator", 2),
    ],
)
def test_a_pass_reads_every_row_once_as_far_as_the_shortest_rank_goes(world_size, kind, n_workers):
    n_batches = TOTAL // (BATCH * world_size) + 3
    results = run(world_size, _read, kind, n_workers, n_batches)
    epochs = [[batch["epoch"][0] for batch in batches] for batches in results]
    assert all(of_rank == epochs[0] for of_rank in epochs)  # all ranks start a pass at the same step
    assert epochs[0] == sorted(epochs[0]) and epochs[0][-1] >= 1
    for epoch in range(epochs[0][-1]):  # the last pass is cut off
        of_pass = [batch for batches in results for batch in batches if set(batch["epoch"]) == {epoch}]
        for name in ("number", "example_id"):
            found = [number for batch in of_pass for number in batch[name]]
            assert len(set(found)) == len(found)
        assert {number for batch in of_pass for number in batch["number"]} <= set(range(TOTAL))
        if kind not in ("generator", "shuffled") or world_size == 1:  # equal shares: no rank waits for another
            incomplete = world_size * max(1, n_workers) * BATCH
            assert TOTAL - BATCH * len(of_pass) <= incomplete + world_size


def test_uneven_shards_end_the_pass_with_the_shortest_rank():
    """Two whole shards for each of four ranks."""
    shares = [sum(LENGTHS[rank::4]) for rank in range(4)]
    assert min(shares) < max(shares) - BATCH
    steps = min(shares) // BATCH
    for batches in run(4, _read, "generator", 0, steps + 1):
        assert [batch["epoch"][0] for batch in batches] == [0] * steps + [1]


@pytest.mark.parametrize("kind, n_workers", [("shuffled", 2), ("table of 3 shards", 0)])
def test_a_resumed_run_reads_the_same_rows_on_the_same_ranks(kind, n_workers):
    whole = run(2, _read, kind, n_workers, 34)
    assert {epoch for batch in whole[0] for epoch in batch["epoch"]} == {0, 1}
    skipped = 29  # into the second pass
    assert run(2, _read, kind, n_workers, 34 - skipped, skipped) == [batches[skipped:] for batches in whole]
