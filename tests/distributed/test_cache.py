# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A reference cache made by several processes: the same bytes, whatever their number, and whatever happens to them."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import nn

from jest_hf.distributed import Ranks
from jest_hf.reference import open_cache
from tests.distributed.launching import ROOT, TIMEOUT, preset_of
from tests.distributed.processes import run
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.reference.caching import contents, make_cache, reference_model


pytestmark = pytest.mark.long


class Collective(nn.Module):
    """A model whose every forward waits for all ranks, as an engine's does."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.model = model
        self.ranks = ranks
        self.forwards = 0

    def forward(self, **inputs: torch.Tensor) -> Any:
        self.forwards += 1
        self.ranks.gather_counts(self.forwards)
        return self.model(**inputs)


def _rows() -> list[dict[str, Any]]:
    rows = random_rows(23)
    rows[7]["image"] = None
    rows[12]["text"] = ["a red star", "a blue circle", "a star"]
    return rows


def _make(folder: str, killed: tuple[int, str] | None = None, **options: Any) -> int:
    """Make the cache on this rank; rank `killed[0]` is killed before the file `killed[1]` gets its name."""
    ranks = Ranks.world()
    replace = os.replace

    def killing(source: str, target: str) -> None:
        if killed is not None and (ranks.rank, Path(target).name) == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = killing
    try:
        model = reference_model()
        wrapped = Collective(model, ranks)
        cache = make_cache(folder, _rows(), model=model, wrapped=wrapped, ranks=ranks, **options)
        cache.take(torch.arange(12))
        return wrapped.forwards
    finally:
        os.replace = replace


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    _make(str(folder))
    return folder


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_processes_writes_the_same_bytes(alone: Path, tmp_path: Path, world_size: int) -> None:
    forwards = run(world_size, _make, str(tmp_path))
    assert contents(tmp_path) == contents(alone)
    # Five shards of three batches, the last of two; first of all each rank asks for width and temperature.
    assert set(forwards) == {1 + sum(3 if k < 4 else 2 for k in range(0, 5, world_size))}


def _make_with(folder: str, options: dict[str, Any]) -> int:
    return _make(folder, **options)


def test_more_processes_than_shards(tmp_path: Path) -> None:
    options = {"shard_rows": 20, "batch_size": 4}
    _make_with(str(tmp_path / "alone"), options)
    assert set(run(3, _make_with, str(tmp_path / "three"), options)) == {1 + math.ceil(20 / 4)}
    assert contents(tmp_path / "three") == contents(tmp_path / "alone")


@pytest.mark.parametrize("world_size, victim, then", [(2, 1, 3), (3, 2, 1), (2, 0, 2)])
def test_a_killed_process_leaves_what_any_number_of_processes_can_finish(
    alone: Path, tmp_path: Path, world_size: int, victim: int, then: int
) -> None:
    """A real SIGKILL of one of several real processes, in the middle of its second shard."""
    name = f"shard-{victim + world_size if victim + world_size < 5 else victim:05d}.safetensors"
    with pytest.raises(AssertionError, match=f"rank {victim}: died without a word"):
        run(world_size, _make, str(tmp_path), (victim, name))
    assert not (tmp_path / name).exists() and not (tmp_path / "manifest.json").exists()
    run(then, _make, str(tmp_path))
    assert contents(tmp_path) == contents(alone)


def _refused(folder: str, other: bool) -> str:
    try:
        folder = f"{folder}/{Ranks.world().rank}" if other else folder
        _make(folder, dtype="float32" if other else "float16")
    except ValueError as error:
        return str(error)
    return "no error"


def test_no_process_waits_where_a_cache_is_refused(alone: Path) -> None:
    for said in run(2, _refused, str(alone), False):
        assert "storage.dtype is 'float32' there, and here it is 'float16'" in said


def test_several_processes_replace_a_cache_of_something_else(alone: Path, tmp_path: Path) -> None:
    make_cache(tmp_path, model=reference_model(2), shard_rows=3)
    run(3, _make_with, str(tmp_path), {"replace": True})
    assert contents(tmp_path) == contents(alone)


def test_hosts_that_do_not_share_the_folder_are_told(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    for path in alone.iterdir():
        (tmp_path / "0" / path.name).write_bytes(path.read_bytes())
    for said in run(2, _refused, str(tmp_path), True):
        assert "the processes do not see the same files" in said and "all hosts share" in said


def test_the_command_on_two_processes_and_on_one(tmp_path: Path) -> None:
    """As a user starts it; the progress is shown once, and the summary is one line."""
    tiny_siglip(1).save_pretrained(tmp_path / "reference")
    tiny_siglip_processor().save_pretrained(tmp_path / "reference")
    datasets.Dataset.from_list(random_rows(50)).to_parquet(tmp_path / "rows.parquet")
    flags = ["cache-reference", "--ref_model", "reference", "--dataset", "rows.parquet", "--batch_size", "4"]
    flags += ["--shard_rows", "16", "--max_train_rows", "40"]
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--main_process_port",
        "0",
        *preset_of("ddp"),
        "-m",
    ]
    for name, line in (("one", [sys.executable, "-m", "jest_hf.cli"]), ("two", [*launcher, "jest_hf.cli"])):
        output = subprocess.run(
            [*line, *flags, "--output_dir", name],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert output.returncode == 0, output.stderr[-4000:]
        said = output.stdout.strip().splitlines()[-1]
        assert said.startswith(f"{name}: 40 rows (0 broken), 40 captions, width 32, float16, 3 shards, 0.0 MB, ")
        assert output.stdout.count("40 rows") == 1
        assert "Caching the reference: 100%" in output.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["storage"] == {"dtype": "float16", "shard_rows": 16, "batch_size": 4, "precision": "no"}
    assert open_cache(tmp_path / "two").n_rows == 40
