# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""An image cache is written by any number of processes, of which any may be killed, and on a disk that may be full."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch

from jest_hf.data import image_writer
from jest_hf.data.image_cache import open_images
from jest_hf.images.decoding import decode_pixels
from tests.data.cached_images import REGION, SIZE, contents, counting, make, small_regions, some_rows  # noqa: F401  # a fixture
from tests.distributed.processes import run


# ---- How it is written ----


def test_the_size_is_told_before_anything_is_written(tmp_path):
    told = []

    def tell(sentence):
        told.append((sentence, (np.fromfile(tmp_path / "rows.u8", dtype=np.uint8) == 0).all()))

    make(tmp_path, tell=tell)
    assert len(told) == 1 and told[0][1]
    assert "23 rows x 768 bytes = 17,664 bytes, of which 17,664 bytes are to be written; the disk has" in told[0][0]
    make(tmp_path, tell=tell)
    assert len(told) == 1  # a whole cache is only opened


def test_a_whole_cache_is_not_touched(tmp_path, monkeypatch):
    make(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    counted = counting(monkeypatch)
    make(tmp_path)
    assert not counted
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_workers_write_the_same_bytes(tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "two", num_workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def write_and_be_killed(folder: str, call: str, number: int) -> None:
    """Write a cache, and be killed at the `number`-th call of a function of the system."""
    image_writer.REGION_BYTES, image_writer.READ_ROWS = REGION, 2
    function, calls = getattr(os, call), iter(range(1000))

    def killing(*given):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given)

    setattr(os, call, killing)
    make(folder)


# A region of five rows has five writes of pixels (four in the first, with the broken row), and one of its states.
@pytest.mark.parametrize(
    "call, number, finished",
    [
        ("ftruncate", 1, None),  # before there is a manifest
        ("replace", 0, None),
        ("posix_fallocate", 1, 0),  # the first is for the states of the rows
        ("pwrite", 2, 0),  # in the middle of the first region
        ("pwrite", 4, 0),  # all its rows are there, and do not count yet
        ("fsync", 4, 0),  # after those of the empty cache: all rows of the first region are written, and not yet safe
        ("pwrite", 5, 5),
        ("pwrite", 13, 10),
        ("pwrite", 26, 20),
    ],
)
def test_killed_while_writing_and_started_again_gives_the_same_bytes(tmp_path, monkeypatch, call, number, finished):
    """A real SIGKILL of a real process."""
    make(tmp_path / "whole")
    killed = tmp_path / "killed"
    with pytest.raises(AssertionError, match="died without a word"):
        run(1, write_and_be_killed, str(killed), call, number)
    with pytest.raises(FileNotFoundError, match="cache-images"):
        open_images(killed)
    counted = counting(monkeypatch)
    make(killed)
    assert contents(killed) == contents(tmp_path / "whole")
    assert len(counted) == 23 - (finished or 0)


def write_with_others(folder: str) -> int:
    """Write a cache slowly; return how many images this process has decoded."""
    image_writer.REGION_BYTES, image_writer.READ_ROWS = REGION, 2
    decoded = []

    def slowly(*given, **more):
        decoded.append(1)
        time.sleep(0.01)
        return decode_pixels(*given, **more)

    image_writer.decode_pixels = slowly
    torch.distributed.barrier()
    make(folder)
    return len(decoded)


def test_two_writers_share_the_work_and_both_return_the_whole_cache(tmp_path):
    make(tmp_path / "one")
    shares = run(2, write_with_others, str(tmp_path / "two"))
    assert sum(shares) == 23 and min(shares) >= 5
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_cache_that_another_has_begun_meanwhile_is_gone_on_with(tmp_path, monkeypatch):
    counted = counting(monkeypatch)
    locked = image_writer._locked

    def after_another(*given, **more):
        monkeypatch.setattr(image_writer, "_locked", locked)
        make(tmp_path)
        return locked(*given, **more)

    monkeypatch.setattr(image_writer, "_locked", after_another)
    make(tmp_path)
    assert len(counted) == 23


def write_and_hang(folder: str, begun) -> None:
    def hang(*given, **more):
        begun.set()
        time.sleep(600)

    image_writer.decode_pixels = hang
    make(folder)


def test_the_region_of_a_writer_that_is_killed_is_written_by_another(tmp_path):
    make(tmp_path / "one")
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    other = context.Process(target=write_and_hang, args=(str(tmp_path / "two"), begun), daemon=True)
    other.start()
    assert begun.wait(30)
    states = []

    def kill():
        states.append(np.fromfile(tmp_path / "two" / "rows.u8", dtype=np.uint8))
        other.kill()

    timer = threading.Timer(1.0, kill)
    timer.start()
    make(tmp_path / "two")  # waits for the locked region, once all others are written
    assert states[0].tolist() == [0] * 5 + [1] * 18  # the first region was locked meanwhile
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    timer.join()
    other.join()


# ---- A full disk ----


def test_a_disk_without_room_is_refused_with_both_numbers(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=17_000))
    with pytest.raises(OSError, match=r"23 rows x 768 bytes.* needs 17,664 bytes more, and the disk has 17,000 bytes"):
        make(tmp_path / "a")
    assert not np.fromfile(tmp_path / "a" / "rows.u8", dtype=np.uint8).any()
    monkeypatch.undo()
    make(tmp_path / "a")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_disk_that_fills_up_costs_no_finished_row(tmp_path, monkeypatch, num_workers):
    make(tmp_path / "whole")
    allocate, calls = os.posix_fallocate, iter(range(100))

    def full(file, start, size):
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(file, start, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        OSError, match=r"pixels\.u8 could not be written \(No space left on device\); make room"
    ) as info:
        make(tmp_path / "full", num_workers=num_workers)
    assert info.value.errno == errno.ENOSPC and "\n" not in str(info.value)
    finished = np.count_nonzero(np.fromfile(tmp_path / "full" / "rows.u8", dtype=np.uint8))
    assert finished == 15 or (num_workers and finished in (18, 20))  # the other process may have finished a region
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    counted = counting(monkeypatch)
    make(tmp_path / "full")
    assert contents(tmp_path / "full") == contents(tmp_path / "whole") and len(counted) == 23 - finished


def write_with_small_files(folder: str) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    with pytest.raises(OSError) as info:
        make(folder)
    return str(info.value)


def test_the_kernels_own_error_is_a_sentence(tmp_path):
    (message,) = run(1, write_with_small_files, str(tmp_path / "a"))
    assert "pixels.u8 could not be written (File too large); make room and start again" in message
    make(tmp_path / "a")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 12 KiB, on which a cache is 17,664 bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_real_disk_another_program_takes_the_room(small_disk, tmp_path, monkeypatch):
    usage = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    with pytest.raises(OSError, match=r"pixels\.u8 could not be written \(No space left on device\)"):
        make(small_disk / "a")
    assert np.fromfile(small_disk / "a" / "rows.u8", dtype=np.uint8).tolist() == [1, 1, 1, 2, 1] + [0] * 18
    subprocess.run(["mount", "-o", "remount,size=64k", str(small_disk)], check=True)
    make(small_disk / "a")
    make(tmp_path / "b")
    assert contents(small_disk / "a") == contents(tmp_path / "b")
