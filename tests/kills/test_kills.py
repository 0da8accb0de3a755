# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The short form of `python -m tests.kills`: a few kills, and a disk that is full."""

from __future__ import annotations

import json
import random
import re
import sys

import pytest

from tests.kills.harness import STEPS, Tally, contents, differences, fill_the_disk, finish, kill_after, try_kills


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and RLIMIT_FSIZE are of POSIX"),
]


@pytest.mark.parametrize(("world_size", "kills"), [(1, 3), (2, 2)])
def test_killed_runs_end_as_one_that_was_left_alone(tmp_path, world_size, kills):
    tally = try_kills(kills, world_size, tmp_path, seed=random.randrange(2**32))
    assert tally.kills >= kills and tally.resumed + len(tally.fresh) >= 1


def test_a_run_on_a_full_disk_goes_on_once_there_is_room(tmp_path):
    errors = fill_the_disk(1, tmp_path)
    assert re.search(r"^OSError: .*checkpoint-6 could not be saved \(.*\); make room if the disk is full", errors[0])


def test_a_run_that_was_killed_at_its_end_takes_no_step_more(tmp_path):
    finish(tmp_path / "whole", 1)
    kill_after(tmp_path / "run", 1, f"checkpoint-{STEPS}")
    tally = Tally()
    finish(tmp_path / "run", 1, tally)
    assert tally.resumed == 1
    assert not differences(contents(tmp_path / "whole", 1), contents(tmp_path / "run", 1))
    state = json.loads((tmp_path / "run" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert state["global_step"] == STEPS


def test_differences_are_seen(tmp_path):
    import torch

    left = {"a": [1, torch.tensor([1.0, 2.0])], "b": "x"}
    assert differences(left, {"a": [1, torch.tensor([1.0, 2.0])], "b": "x"}) == []
    assert differences(left, {"a": [1, torch.tensor([1.0, 3.0])], "b": "x"}) == ["/a/1"]
    assert differences(left, {"a": [2, torch.tensor([1.0, 2.0])]}) == ["/a/0", "/b"]
