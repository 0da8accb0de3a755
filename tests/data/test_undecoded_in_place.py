# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Functions of a stream that change their row in place have the effect that `datasets` gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import pytest
from PIL import Image

from jest_hf.data.undecoded import undecoded
from jest_hf.images.lazy import LazyImage
from tests.data.test_undecoded import BAD, FEATURES, N, needs_guards, streams
from tests.helpers import random_rows


def put(row: dict[str, Any]) -> dict[str, Any]:
    row["text"] = row["text"].upper()
    return row


def put_and_remove(row: dict[str, Any]) -> dict[str, Any]:
    row["n"] = len(row.pop("text"))
    return row


def put_an_image(row: dict[str, Any]) -> dict[str, Any]:
    row["image"] = row["image"].resize((4, 3))
    return row


def put_and_return_another(row: dict[str, Any]) -> dict[str, Any]:
    row["text"] = "not returned"
    return {"n": len(row)}


def of_batches(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same change of each row of a batch, in place where the change is."""

    def changed(batch: dict[str, Any]) -> dict[str, Any]:
        made = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        found = [change(row) for row in made]
        columns = {name: [row[name] for row in found] for name in found[0]}
        if found[0] is not made[0]:
            return columns
        for name in set(batch) - set(columns):
            del batch[name]
        batch.update(columns)
        return batch

    return changed


BEFORE: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda s: s,
    "filter": lambda s: s.filter(lambda row: "a" in row["text"]),
    "filter of batches": lambda s: s.filter(lambda b: [bool(t) for t in b["text"]], batched=True, batch_size=4),
    "filter and map": lambda s: s.filter(lambda row: True).map(lambda row: {"k": 1}),
    "concatenate": lambda s: datasets.concatenate_datasets([s.filter(lambda row: True), s]),
}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with comparable values, without what `undecoded` adds."""
    found = {name: value for name, value in row.items() if not name.startswith("__")}
    if isinstance(found["image"], LazyImage | Image.Image):
        image = found["image"].copy()
        found["image"] = (image.size, image.convert("RGB").tobytes())
    return found


@needs_guards
@pytest.mark.parametrize("removed", [None, ["text"]], ids=["", "remove"])
@pytest.mark.parametrize("batched", [False, True], ids=["", "batched"])
@pytest.mark.parametrize(
    ("before", "change"),
    [
        (before, change)
        for before in BEFORE
        for change in (put, put_and_remove, put_an_image, put_and_return_another)
        if (before, change) != ("concatenate", put_an_image)  # `datasets` itself decodes no image there
    ],
)
def test_a_function_that_changes_its_row_in_place_has_the_effect_that_datasets_gives_it(
    before, change, batched, removed
):
    function = of_batches(change) if batched else change
    options = {"remove_columns": removed, "batched": batched, **({"batch_size": 4} if batched else {})}
    for sound, broken in zip(sound_streams(), streams(), strict=True):
        wanted = [plain(row) for row in BEFORE[before](sound).map(function, **options)]
        assert [plain(row) for row in undecoded(BEFORE[before](sound).map(function, **options))] == wanted
        if change is put_an_image:  # it looks at the broken image
            found = list(undecoded(BEFORE[before](broken).map(function, **options)))
            assert [row.get("__broken__") is not None for row in found] == [k % N == BAD for k in range(len(wanted))]
            assert all(plain(row) == wanted[k] for k, row in enumerate(found) if k % N != BAD)


def sound_streams() -> list[datasets.IterableDataset]:
    made = random_rows(N)
    generated = datasets.IterableDataset.from_generator(lambda: iter(made), features=FEATURES)
    return [datasets.Dataset.from_list(made, features=FEATURES).to_iterable_dataset(num_shards=2), generated]
