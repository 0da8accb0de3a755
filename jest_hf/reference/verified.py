# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Which shards of a reference cache have been checked, ahead of their use: their sha256, and what they hold.

No row of a shard is used before the whole shard was checked. Reading and hashing 12 million rows (37 GB) takes the
best part of a minute, so a run starts it when the cache is opened, in threads of the training process
([`ShardChecks.start`]). The states of the shards are in memory that the loader's workers share, so each shard is
compared once for all of them: a worker that needs a shard waits for the threads. Where no thread is at work, as in a
copy that another program has unpickled, the caller compares the shard itself.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import torch


UNKNOWN, WHOLE, DAMAGED = 0, 1, 2
MOST_THREADS = 4
PATIENCE = 10.0  # seconds without a hashed block after which a process no longer waits for the threads
_BLOCK = 1 << 22


class ShardChecks:
    """
    The states of the shards of one cache.

    Args:
        files (sequence of `Path`): The shards.
        hashes (sequence of `str`): The sha256 of each, as in the manifest.
        inspect (`Callable`, *optional*): `inspect(file, number)` returns what is wrong with the tensors of a shard
            that has its sha256, or `None`. It is pickled with this object.
    """

    def __init__(
        self,
        files: Sequence[Path],
        hashes: Sequence[str],
        inspect: Callable[[Path, int], str | None] | None = None,
    ) -> None:
        self.files = list(files)
        self.hashes = list(hashes)
        self.inspect = inspect
        self._states = torch.zeros(len(self.files), dtype=torch.uint8)
        self._blocks = torch.zeros((), dtype=torch.int64)  # hashed by the threads: shows that they are at work
        for shared in (self._states, self._blocks):
            shared.share_memory_()
        self._is_alone = False  # whether this process has waited for threads in vain

    def start(self) -> None:
        """Check all shards in the background, once; a damaged one raises where it is used."""
        if int(self._blocks) or not self.files:
            return
        self._blocks += 1
        numbers = count()  # `next` of it is atomic: each thread takes the next shard
        for _ in range(min(MOST_THREADS, max(1, (os.cpu_count() or 1) // 2))):
            threading.Thread(target=self._work, args=(numbers,), name="reference-cache", daemon=True).start()

    def _work(self, numbers: count[int]) -> None:
        while (number := next(numbers)) < len(self.files):
            if self._states[number] == UNKNOWN:
                try:
                    whole = self._fault(number) is None
                except OSError:  # it raises again, with its reason, in the process that needs the shard
                    whole = False
                self._states[number] = WHOLE if whole else DAMAGED

    def wait_for(self, number: int) -> None:
        """Return once a shard is known to be whole.

        Raises:
            ValueError: if it is damaged.
            OSError: if it cannot be read.
        """
        blocks, since = int(self._blocks), time.monotonic()
        while blocks and not self._is_alone and self._states[number] == UNKNOWN:
            time.sleep(0.002)
            if blocks != int(self._blocks):
                blocks, since = int(self._blocks), time.monotonic()
            self._is_alone = time.monotonic() - since > PATIENCE
        if self._states[number] == WHOLE:
            return
        fault = self._fault(number)
        if fault is not None:
            raise ValueError(
                f"{self.files[number]} is damaged: {fault}; delete this file, and run `jest-hf cache-reference` again "
                "or download it from the Hub again."
            )
        self._states[number] = WHOLE

    def _fault(self, number: int) -> str | None:
        if sha256_of(self.files[number], self._show) != self.hashes[number]:
            return "its sha256 is not that of the manifest"
        return None if self.inspect is None else self.inspect(self.files[number], number)

    def _show(self) -> None:
        if int(self._blocks):
            self._blocks += 1


def sha256_of(path: Path, on_block: Callable[[], object] = lambda: None) -> str:
    """Return the sha256 of a file, in hexadecimal digits; `on_block` is called after every 4 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            on_block()
    return digest.hexdigest()


__all__ = ["ShardChecks", "sha256_of"]
