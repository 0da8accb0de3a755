# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
Kill many runs.

    python -m tests.kills --kills 100
    python -m tests.kills --kills 50 --processes 2 --seed 7
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.kills.harness import fill_a_small_disk, fill_the_disk, try_kills


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("--kills", type=int, default=100, help="Kills, shared out over the numbers of processes.")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="Numbers of processes.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for world_size in options.processes:
            start = time.monotonic()
            tally = try_kills(options.kills // len(options.processes), world_size, Path(folder), options.seed)
            print(
                f"{world_size} processes: {tally.kills} kills, {tally.while_saving} of them while saving; "
                f"{tally.resumed} runs went on from a checkpoint, {len(tally.fresh)} started again; all bit-equal at "
                f"their ends; {tally.set_aside} half-written checkpoints set aside; "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
            for sentence, times in Counter(one.split(":")[0] for one in tally.fresh).items():
                print(f"  {times} x {sentence}")
            print(f"  files that may not grow: {fill_the_disk(world_size, Path(folder))[0]}", flush=True)
            full = fill_a_small_disk(world_size, Path(folder))
            print(f"  full disk: {full[0] if full else 'not tried: no right to mount one'}", flush=True)


if __name__ == "__main__":
    main()
