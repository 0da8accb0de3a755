# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What differs between two sets of records, and what a record must have in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.invariant.matrix import RUNS, SETTINGS, Run


MISSING = "(nothing)"
ALWAYS = ("random_state", "batches", "learner", "logs", "evaluation", "flops")
OF_FIRST_RANK = ("card", "ledger", "files", "contents")


@dataclass(frozen=True)
class Difference:
    """One place where two records differ."""

    item: str  # or "failed", "missing"
    place: str
    base: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.place}\n    base {shortened(self.base)}\n    new  {shortened(self.new)}"


def shortened(value: Any, length: int = 150) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."


def compare(name: str, base: Mapping[str, Any], new: Mapping[str, Any], n_processes: int) -> list[Difference]:
    """
    All differences of one run.

    Args:
        name (`str`): Of the run.
        base, new (`dict`): Its records by rank, `"0"` and so on.
        n_processes (`int`): Number of ranks that there must be.
    """
    differences: list[Difference] = []
    for rank in map(str, range(n_processes)):
        place = f"{name}, rank {rank}"
        sides = [records.get(rank) for records in (base, new)]
        if None in sides:
            differences.append(Difference("missing", place, *(MISSING if one is None else "there" for one in sides)))
            continue
        errors = [record.get("error") for record in sides]
        if any(errors):
            differences.append(Difference("failed", place, *errors))
            continue
        one, other = (record["items"] for record in sides)
        for side, items in (("base", one), ("new", other)):
            for item in lacking(RUNS[name], items, first=rank == "0"):
                differences.append(Difference("missing", f"{place}, {item} of {side}", MISSING, MISSING))
        for item in ordered_union(one, other):
            found = walk(one.get(item, MISSING), other.get(item, MISSING), item)
            differences += [Difference(item, f"{place}, {path}", *values) for path, *values in found]
    return differences


def lacking(run: Run, items: Mapping[str, Any], first: bool) -> list[str]:
    """Items that a record of this run must have, and has not: two empty records would be equal too."""
    settings = SETTINGS | run.settings
    wanted = [*ALWAYS, *(item for item in run.leaves if first or item != "cache")]
    wanted += ["predictions"] if run.predicts else []
    wanted += ["before"] if run.resumed_at is not None else []
    wanted += OF_FIRST_RANK if first else []
    absent = [item for item in wanted if not items.get(item)]
    steps = settings["max_steps"] - (run.resumed_at or 0)
    if len(items.get("batches", ())) != steps:
        absent.append(f"batches of {steps} steps")
    return absent


def walk(base: Any, new: Any, path: str) -> Iterable[tuple[str, Any, Any]]:
    """Places where two values from JSON differ; the order of keys counts."""
    if isinstance(base, dict) and isinstance(new, dict):
        if list(base) != list(new) and set(base) == set(new):
            yield f"{path}: order of keys", list(base), list(new)
        for key in ordered_union(base, new):
            yield from walk(base.get(key, MISSING), new.get(key, MISSING), f"{path} / {key}")
    elif isinstance(base, list) and isinstance(new, list) and len(base) == len(new):
        for number, (one, other) in enumerate(zip(base, new, strict=True)):
            yield from walk(one, other, f"{path} / {number}")
    elif base != new or type(base) is not type(new):
        yield path, base, new


def ordered_union(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [*one, *(key for key in other if key not in one)]


def items_of(differences: Sequence[Difference]) -> list[str]:
    """Names of the items that differ, in order."""
    return list(dict.fromkeys(one.item for one in differences))


def format_table(cells: Mapping[str, Mapping[int, str]], columns: Sequence[int]) -> str:
    """A line for each run, a column for each number of processes."""
    heads = [f"{n} process{'' if n == 1 else 'es'}" for n in columns]
    rows = [["run", *heads], *([name, *(of_run.get(n, "") for n in columns)] for name, of_run in cells.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
