# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Shards are compared with their sha256 ahead of their use, once for all processes, and a damaged one never trains."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import threading
import time

import pytest
import torch

from jest_hf.reference import CachedReference, open_cache, verified
from jest_hf.reference.verified import ShardChecks
from tests.helpers import random_rows
from tests.reference.caching import make_cache
from tests.trainers import make_trainer


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_bytes(path.name.encode() * 1000)
    return paths


def checks_of(files):
    return ShardChecks(files, [hashlib.sha256(path.read_bytes()).hexdigest() for path in files])


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def hashed(monkeypatch):
    """Files that were hashed, and the threads that did it."""
    found = []
    sha256_of = verified.sha256_of

    def counting(path, on_block=lambda: None):
        found.append((path.name, threading.current_thread().name))
        return sha256_of(path, on_block)

    monkeypatch.setattr(verified, "sha256_of", counting)
    return found


def test_a_shard_is_compared_once_and_in_the_background_where_that_was_started(files, hashed):
    lazy = checks_of(files)
    lazy.wait_for(3)
    lazy.wait_for(3)
    assert hashed == [("3", threading.current_thread().name)]
    hashed.clear()
    ahead = checks_of(files)
    ahead.start()
    ahead.start()
    for number in range(5):
        ahead.wait_for(number)
    assert sorted(hashed) == [(str(number), "reference-cache") for number in range(5)]


def test_a_row_of_a_shard_that_is_not_compared_yet_waits(files, monkeypatch):
    let_go, sha256_of = threading.Event(), verified.sha256_of
    monkeypatch.setattr(verified, "sha256_of", lambda *given: let_go.wait(20) and sha256_of(*given))
    checks, done = checks_of(files), []
    checks.start()
    waiting = threading.Thread(target=lambda: (checks.wait_for(4), done.append(4)))
    waiting.start()
    time.sleep(0.1)
    assert not done
    let_go.set()
    waiting.join(20)
    assert done == [4]


def test_a_damaged_shard_is_named_by_whoever_needs_it(files):
    checks = checks_of(files)
    files[2].write_bytes(b"2" * 999 + b"3")
    checks.start()
    until(lambda: all(checks._states))
    checks.wait_for(1)
    with pytest.raises(ValueError, match="/2 is damaged: its sha256 is not that of the manifest; delete this file"):
        checks.wait_for(2)


def test_a_shard_that_cannot_be_read_is_an_error_with_its_reason(files):
    checks = checks_of(files)
    files[1].unlink()
    checks.start()
    with pytest.raises(FileNotFoundError):
        checks.wait_for(1)


def test_a_copy_elsewhere_does_not_wait_for_threads_that_it_has_not(files, monkeypatch):
    monkeypatch.setattr(verified, "PATIENCE", 0.05)
    checks = checks_of(files)
    checks._blocks += 1  # started
    copy = pickle.loads(pickle.dumps(checks))
    start = time.monotonic()
    for number in range(5):
        copy.wait_for(number)
    assert time.monotonic() - start < 1  # it waited once, and not for each shard


# In a run


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cached") / "cache", random_rows(96), shard_rows=16).folder


def run_with(folder, cache, **changes):
    return make_trainer(folder, rows=random_rows(96), reference_cache=str(cache), **changes)


@pytest.mark.parametrize("criterion", ["learnability", "easy_reference"])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_no_row_of_a_damaged_shard_trains(tmp_path, cache, n_workers, criterion):
    folder = shutil.copytree(cache, tmp_path / "cache")
    path = folder / "shard-00003.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    trainer = run_with(tmp_path / "run", folder, dataloader_num_workers=n_workers, criterion=criterion)
    with pytest.raises(ValueError, match="shard-00003.safetensors is damaged: its sha256 is not that of the manifest"):
        trainer.train()
    assert trainer.statistics.trained == 0  # every super-batch of 32 of the 96 rows has rows of each shard


def test_a_run_hashes_each_shard_once_and_its_workers_none(tmp_path, cache, hashed):
    trainer = run_with(tmp_path, cache, dataloader_num_workers=2)
    trainer.train()
    # The workers are forked, so what they hash is not seen here; but they use what the threads have hashed.
    assert sorted(hashed) == [(f"shard-{number:05d}.safetensors", "reference-cache") for number in range(6)]
    checks = trainer.reference.cache._checks
    assert checks._states.eq(verified.WHOLE).all() and not checks._is_alone


def test_a_forked_worker_knows_what_the_threads_have_compared(cache):
    context, opened = torch.multiprocessing.get_context("fork"), open_cache(cache)
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=lambda: sender.send(_states_once_known(CachedReference(opened))))
    worker.start()
    opened.verify_ahead()
    assert receiver.poll(20) and receiver.recv() == [verified.WHOLE] * 6
    worker.join(20)


def test_a_worker_with_a_copy_knows_it_too(cache):
    """As with other ways to start a process than fork: the copy comes through multiprocessing."""
    with torch.multiprocessing.get_context("fork").Pool(1) as pool:
        opened = open_cache(cache)
        waiting = pool.apply_async(_states_once_known, (CachedReference(opened),))
        opened.verify_ahead()
        assert waiting.get(20) == [verified.WHOLE] * 6


def _states_once_known(source):
    states = source.cache._checks._states
    until(lambda: bool(states.all()))
    return states.tolist()
