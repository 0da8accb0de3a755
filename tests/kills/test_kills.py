# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The short form of `python -m tests.kills`: a few kills, and a disk that is full."""

from __future__ import annotations

import random
import re
import sys

import pytest

from tests.kills.harness import (
    LAST,
    Tally,
    contents,
    differences,
    fill_the_disk,
    finish,
    kill_after,
    left_alone,
    try_kills,
)


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and RLIMIT_FSIZE are of POSIX"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.mark.parametrize(("world_size", "kills"), [(1, 2), (2, 1)])
def test_killed_runs_end_as_one_that_was_left_alone(folder, world_size, kills):
    tally = try_kills(kills, world_size, folder, seed=random.randrange(2**32))
    assert tally.kills >= kills and tally.resumed + len(tally.fresh) >= 1


def test_a_run_on_a_full_disk_goes_on_once_there_is_room(folder):
    errors = fill_the_disk(1, folder)
    assert re.search(r"^OSError: .*checkpoint-6 could not be saved \(.*\); make room if the disk is full", errors[0])


def test_a_run_that_was_killed_at_its_end_takes_no_step_more(folder):
    kill_after(folder / "run", 1, LAST)
    tally = Tally()
    finish(folder / "run", 1, tally)
    assert tally.resumed == 1
    assert not differences(contents(left_alone(folder, 1), 1), contents(folder / "run", 1))


def test_differences_are_seen(tmp_path):
    import torch

    left = {"a": [1, torch.tensor([1.0, 2.0])], "b": "x"}
    assert differences(left, {"a": [1, torch.tensor([1.0, 2.0])], "b": "x"}) == []
    assert differences(left, {"a": [1, torch.tensor([1.0, 3.0])], "b": "x"}) == ["/a/1"]
    assert differences(left, {"a": [2, torch.tensor([1.0, 2.0])]}) == ["/a/0", "/b"]
