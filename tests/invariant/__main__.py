# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
Compare the working tree with a commit, or try whether the matrix sees two mistakes.

    python -m tests.invariant --base 2850542
    python -m tests.invariant --base 2850542 --runs dropout_proxy,resumed --processes 2
    python -m tests.invariant --mutations
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.invariant.comparison import compare, format_table, items_of
from tests.invariant.matrix import RUNS
from tests.invariant.mutations import MUTATIONS
from tests.invariant.trees import ROOT, Job, base_tree, copy_harness, copy_package, run_together


SHOWN = 4  # differences of one run that are printed


def same(base: str, runs: Sequence[str], processes: Sequence[int], folder: Path) -> bool:
    """Whether all runs have the same results in both trees; prints what differs."""
    harness, new = copy_harness(folder), copy_package(ROOT, folder / "new")
    cells: dict[str, dict[int, str]] = {name: {} for name in runs}
    details, n_compared, n_equal = [], 0, 0
    with base_tree(base, folder) as old:
        for n in processes:
            make = {
                side: partial(Job, tree, harness, folder / f"{side}-{n}", runs, n)
                for side, tree in (("base", old), ("new", new))
            }
            # One process of each tree at a time, or two of one tree.
            groups = [list(make.values())] if n == 1 else [[one] for one in make.values()]
            finished = [pair for group in groups for pair in run_together(group)]
            for job, records in finished:
                print(f"{job.folder.name}: {len(records)} of {len(runs)} runs in {job.seconds:.0f} s", flush=True)
            (_, before), (_, after) = finished
            for name in runs:
                found = compare(name, before.get(name, {}), after.get(name, {}), n)
                n_compared, n_equal = n_compared + 1, n_equal + (not found)
                cells[name][n] = ", ".join(items_of(found)) or "equal"
                if found:
                    details.append(f"\n{name}, processes: {n}, {len(found)} differences")
                    details += [f"  {one}" for one in found[:SHOWN]]
            crashed = [job for job, records in finished if len(records) < len(runs)]
            details += [f"\nend of the output of {job.folder.name}:\n{job.output[-3000:]}" for job in crashed]
    print(format_table(cells, processes))
    print("\n".join(details))
    print(f"{len(runs)} runs, {n_compared} compared with {base}: {n_equal} equal, {n_compared - n_equal} not")
    return n_compared == n_equal > 0


def see_mutations(runs: Sequence[str], folder: Path) -> bool:
    """Whether each mutation changes the runs that must show it, and no others; one process."""
    harness, tree = copy_harness(folder), copy_package(ROOT, folder / "new")
    jobs = [partial(Job, tree, harness, folder / str(mutation), runs, 1, mutation) for mutation in (None, *MUTATIONS)]
    (_, plain), *mutated = run_together(jobs)
    is_right = True
    for mutation, (job, records) in zip(MUTATIONS, mutated, strict=True):
        wanted = [name for name in runs if mutation in RUNS[name].seen_by]
        seen, state_alone = [], []
        for name in runs:
            found = compare(name, plain.get(name, {}), records.get(name, {}), 1)
            items = items_of(found)
            if {"missing", "failed"} & set(items):
                print(f"{mutation}: {name} failed: {found[0]}")
                is_right = False
            elif items == ["random_state"]:
                state_alone.append(name)
            elif items:
                seen.append(name)
        is_right = is_right and seen == wanted and bool(seen)
        print(f"{mutation} ({job.seconds:.0f} s)")
        print(f"  seen in {len(seen)} of {len(runs)} runs: {', '.join(seen)}")
        print(f"  wanted in {len(wanted)}: {', '.join(wanted)}")
        print(f"  the state of the random numbers alone differs in {len(state_alone)} others")
    print("as wanted" if is_right else "NOT as wanted")
    return is_right


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.invariant", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--base", help="a commit, or a folder with the package in it")
    parser.add_argument("--mutations", action="store_true", help="try whether the matrix sees two mistakes")
    parser.add_argument("--runs", default="", help="names, separated by commas; default: all")
    parser.add_argument("--processes", default="1,2", help="numbers of processes, separated by commas")
    parser.add_argument("--keep", type=Path, help="a new folder in which all records stay; default: none")
    options = parser.parse_args(arguments)
    if bool(options.base) == options.mutations:
        parser.error("give either --base or --mutations (with make: BASE=<commit>)")
    runs = options.runs.split(",") if options.runs else list(RUNS)
    if unknown := [name for name in runs if name not in RUNS]:
        parser.error(f"no runs of the matrix: {', '.join(unknown)}; there are {', '.join(RUNS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and leave no work tree and no process behind
    if options.keep is None:
        place = tempfile.TemporaryDirectory(prefix="jest-same-")
    else:
        options.keep.mkdir(parents=True)
        place = contextlib.nullcontext(options.keep.absolute())
    with place as folder:
        if options.mutations:
            is_right = see_mutations(runs, Path(folder))
        else:
            is_right = same(options.base, runs, [int(n) for n in options.processes.split(",")], Path(folder))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
