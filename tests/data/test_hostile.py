# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Hundreds of rows as bad as data can be: good ones have their pixels, bad ones a reason, and the run goes on."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from jest_hf import JESTDataCollator
from jest_hf.data.labelled import ImageLabelCollator
from jest_hf.data.rows import EpochSampler, Rows
from jest_hf.data.streamed_rows import StreamedRows
from jest_hf.report import read_selections
from tests.data.hostile import GOOD, Case, Fragile, hostile, labels
from tests.helpers import SHAPES, tiny_siglip_processor
from tests.trainers import logged, make_trainer


class FragileStream(torch.utils.data.IterableDataset):
    """The same rows in order: an iterator that goes on after an error."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = Fragile(rows)

    def __iter__(self) -> Iterator[Any]:
        return _Steps(self.rows)


class _Steps:
    def __init__(self, rows: Fragile) -> None:
        self.rows, self.place = rows, -1

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.place += 1
        if self.place >= len(self.rows):
            raise StopIteration
        return self.rows[self.place]


KINDS = {
    "map-style": lambda rows: Rows(Fragile(rows), "image"),
    "stream": lambda rows: StreamedRows(FragileStream(rows)),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    return hostile(tmp_path_factory.mktemp("hostile"))


def collate(collator: Any, rows: list[Any], kind: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the super-batch of some rows, and the reasons for which rows were skipped."""
    listening, reasons = copy.copy(collator), []
    listening._log_skip = lambda example_id, reason: reasons.append(str(reason))
    return listening(list(KINDS[kind](rows))), reasons


@pytest.mark.parametrize("kind", KINDS)
def test_each_hostile_row_is_skipped_for_its_reason_or_has_its_pixels(cases, kind):
    collator = JESTDataCollator(tiny_siglip_processor())
    good = collator([GOOD])
    wrong = []
    assert len(cases) >= 200 and sum(case.reason is not None for case in cases) >= 150
    for case in cases:
        if kind == "stream" and isinstance(case.row, StopIteration):  # it is the end of a stream
            continue
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            batch, reasons = collate(collator, [GOOD, renewed(case.row), GOOD], kind)
        said = [f"{one.category.__name__}: {one.message}" for one in seen]
        valid = bool(batch["valid"][1])
        for place in (0, 2):
            assert batch["valid"][place] and torch.equal(batch["pixel_values"][place], good["pixel_values"][0])
        if valid and not all(re.search(case.warns, text) for text in said):
            wrong.append((case.name, "warned", said))
        if not valid:
            (reason,) = reasons
            fits = case.reason is not None and re.search(case.reason, reason)
            if not fits or "\n" in reason or len(reason) > 600 or not reason.isprintable():
                wrong.append((case.name, "skipped", reason[:200]))
            assert not batch["pixel_values"][1].any()
        elif not case.either:
            expected = collator([{"image": case.pixels, "text": case.caption}]) if case.reason is None else None
            if expected is None or any(
                not torch.equal(batch[n][1], expected[n][0]) for n in ("pixel_values", "input_ids")
            ):
                wrong.append((case.name, "trained", reasons))
    assert not wrong, "\n".join(map(str, wrong))


def renewed(row: Any) -> Any:
    """A row whose iterators are not used up."""
    if isinstance(row, dict) and hasattr(row.get("text"), "send"):
        return {**row, "text": (text for text in ["a red star"])}
    return row


@pytest.mark.parametrize("kind", KINDS)
def test_each_hostile_label_is_skipped_or_the_class(kind):
    classes = {name: number for number, name in enumerate(SHAPES)}
    collator = ImageLabelCollator(tiny_siglip_processor().image_processor, classes)
    for case in labels():
        batch, reasons = collate(collator, [GOOD, case.row, GOOD], kind)
        assert batch["valid"].tolist() == [True, case.reason is None, True], case.name
        if case.reason is None:
            assert batch["labels"][1] == case.label and not reasons
        else:
            assert re.search(case.reason, reasons[0]), (case.name, reasons)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_over_all_of_them(cases, kind, tmp_path):
    chosen = [case for case in cases if not case.either and not isinstance(case.row, StopIteration)]
    chosen = [case for case in chosen if len(case.caption) < 1000]  # a tokenizer takes seconds for a megabyte
    chosen = [chosen[place] for place in np.random.default_rng(0).permutation(len(chosen))]
    rows = [renewed(case.row) for case in chosen]
    data = FragileStream(rows) if kind == "stream" else Fragile(rows)
    steps = len(rows) // 64
    options = {"per_device_train_batch_size": 16, "max_steps": steps, "logging_steps": steps}
    trainer = make_trainer(tmp_path, rows=data, record_selection=True, **options)
    trainer.train()
    order = list(range(len(rows)))
    if kind == "map-style":
        order = [number for _, number in EpochSampler(len(rows), trainer.args.data_seed)]
    seen = [chosen[number] for number in order[: 64 * steps]]
    assert logged(trainer, "examples_seen")[-1] == len(seen)
    assert logged(trainer, "examples_skipped")[-1] == sum(case.reason is not None for case in seen)
    trained = read_selections(tmp_path / "selections.parquet")["example_id"].to_pylist()
    assert len(trained) > 8 * steps and not [number for number in trained if chosen[number].reason is not None]


def test_ids_that_do_not_fit():
    read = list(StreamedRows(FragileStream([{**GOOD, "example_id": 2**63}, {**GOOD, "example_id": -(2**63)}])))
    assert "example_id=9223372036854775808 does not fit in 64 bits" in read[0].reason
    assert read[1]["example_id"] == -(2**63)
