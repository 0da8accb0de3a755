# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A process that hangs is not waited for longer than `ddp_timeout`, and the group of processes is destroyed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from tests.distributed.processes import run
from tests.trainers import make_trainer


def wait_for_a_rank_that_hangs(folder):
    trainer = make_trainer(f"{folder}/{torch.distributed.get_rank()}", ddp_timeout=2)
    trainer.ranks.gather(torch.zeros(1))
    if trainer.ranks.rank == 1:
        time.sleep(8)
        return None
    start = time.monotonic()
    with pytest.raises(RuntimeError):
        trainer.ranks.gather(torch.zeros(1))
    return time.monotonic() - start


def test_ddp_timeout_bounds_a_hang_on_gloo(tmp_path):
    assert 1 < run(2, wait_for_a_rank_that_hangs, str(tmp_path))[0] < 7


ENDS = """
import atexit, os, sys
import torch.distributed as dist
from jest_hf.distributed.group import end_group_at_exit

atexit.register(lambda: print("initialised:", dist.is_initialized()))  # called after what is registered later
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
end_group_at_exit()
end_group_at_exit()
if sys.argv[2] == "error":
    raise ValueError("ends the run")
"""


@pytest.mark.parametrize("how", ["well", "error"])
def test_the_group_is_destroyed_at_the_end(tmp_path, how):
    ended = subprocess.run(
        [sys.executable, "-c", ENDS, str(tmp_path / "store"), how], capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == f"initialised: {how == 'error'}\n", ended.stderr
    assert (ended.returncode == 0) == (how == "well")
