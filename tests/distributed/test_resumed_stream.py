# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A stream that several ranks share goes on where a run was, and with as many ranks alone."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import datasets
import pytest

from jest_hf.data.position import Position, load_position, save_position
from jest_hf.distributed import Ranks
from tests.data.resumed_streams import Kinds, check
from tests.distributed.processes import run


SIZE, SHARD, BUFFER, STEPS = 4, 20, 24, (5, 70)


def _go_on(kind: str, form: str, n_workers: int, folder: str) -> dict[int, int]:
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # seconds after each stream of Parquet files
    options: dict[str, Any] = {}
    if n_workers > 0:
        # A daemon, as which the ranks of these tests run, may have no children, and loader workers are children.
        multiprocessing.current_process()._config["daemon"] = False
        options = {"num_workers": n_workers, "multiprocessing_context": "fork"}
    make = getattr(Kinds(Path(folder), 480, SHARD, BUFFER), kind)
    return check(make, form, STEPS, Path(folder), SIZE, Ranks.world(), **options)


@pytest.mark.parametrize(
    "world_size, kind, form, n_workers",
    [
        (2, "concatenated_and_shuffled", "plain", 0),
        (2, "interleaved_of_shuffled", "chosen", 2),
        (2, "parquet", "plain", 2),
        (3, "shuffled", "plain", 2),
        (3, "webdataset", "chosen", 0),
        (3, "concatenated", "chosen", 0),  # 20 shards, which three ranks cannot share: each keeps every third row
    ],
)
def test_ranks_go_on_together_and_read_few_rows_again(tmp_path, world_size, kind, form, n_workers):
    if kind in ("parquet", "webdataset"):
        getattr(Kinds(tmp_path, 480, SHARD, BUFFER), kind)()  # the files
    for reads in run(world_size, _go_on, kind, form, n_workers, str(tmp_path)):
        if n_workers == 0:
            sources = 2 if "interleaved" in kind else 1
            most = sources * (10 * (SHARD + 2) + BUFFER) + 2 * world_size * SIZE
            assert all(0 < n <= most for n in reads.values())
            assert most < STEPS[-1] * SIZE * (world_size if kind == "concatenated" else 1)


def _load(folder: str) -> str:
    try:
        return str(load_position(folder, Ranks.world(), 0))
    except ValueError as error:
        return str(error)


def test_all_ranks_refuse_alike(tmp_path):
    for rank in (0, 1):
        save_position(Position(4, 0, 0, 2, 0, 0, [None]), tmp_path, rank)
    assert set(run(2, _load, str(tmp_path))) == {str(Position(4, 0, 0, 2, 0, 0, [None]))}
    (more,) = set(run(3, _load, str(tmp_path)))
    assert "with 2 processes, and this one has 3" in more
    (tmp_path / "stream_position_1.json").unlink()
    (missing,) = set(run(2, _load, str(tmp_path)))
    assert "stream_position_1.json is missing" in missing
