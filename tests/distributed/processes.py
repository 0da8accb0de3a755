# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Run a function in a real gloo group of several processes, and return what each of them returned.

The processes are forked from a server that has imported torch and jest_hf already, which costs a tenth of a second
where starting an interpreter would cost five. They meet in a file, not on a port: several test runs cannot collide.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


TIMEOUT = 120  # seconds: a rank that waits longer than this for the others has been deserted


def run(world_size: int, function: Callable[..., Any], *args: Any, start_method: str = "forkserver") -> list[Any]:
    """
    Call `function(*args)` on each of `world_size` ranks, inside a default process group.

    Args:
        world_size (`int`): Number of processes.
        function (`Callable`): A module-level function; it and its arguments and result are pickled.
        start_method (`str`, *optional*, defaults to `"forkserver"`): That of multiprocessing. `"fork"` needs no
            server, and is for a process that has imported everything and has started no thread.

    Returns:
        What each rank returned, in the order of ranks.

    Raises:
        AssertionError: with the traces of the ranks that raised or died.
    """
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        context.set_forkserver_preload(["tests.distributed.preloaded"])
    # As bytes both ways: torch would have multiprocessing share tensors, which die with the process that made them.
    call = pickle.dumps((function, args))
    with tempfile.TemporaryDirectory() as folder:
        processes, receivers = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            processes.append(context.Process(target=_work, args=(rank, world_size, folder, sender, call), daemon=True))
            receivers.append(receiver)
            processes[-1].start()
            sender.close()  # so that a dead process is an EOFError here and not a wait for ever
        try:
            outcomes = [_outcome(receiver) for receiver in receivers]
        finally:
            for process in processes:
                process.join(timeout=5)
                process.kill()
    failures = [f"rank {rank}: {value}" for rank, (succeeded, value) in enumerate(outcomes) if not succeeded]
    assert not failures, "\n".join(failures)
    return [value for _, value in outcomes]


def _work(rank: int, world_size: int, folder: str, sender: Connection, call: bytes) -> None:
    torch.set_num_threads(1)
    try:
        # What a launcher sets: accelerate goes by it, and finds the group made already.
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        function, args = pickle.loads(call)
        dist.init_process_group(
            "gloo",
            init_method=(Path(folder) / "store").as_uri(),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=TIMEOUT),
        )
        outcome = pickle.dumps((True, function(*args)))
        dist.destroy_process_group()
    except BaseException:
        outcome = pickle.dumps((False, traceback.format_exc()))
    sender.send_bytes(outcome)


def _outcome(receiver: Connection) -> tuple[bool, Any]:
    try:
        return pickle.loads(receiver.recv_bytes())
    except EOFError:
        return False, "died without a word"
