# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Ranks that hold different training data are refused at the start, on every rank; the same data are accepted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer
from jest_hf.distributed import Ranks
from jest_hf.training.identity import check_same_rows
from jest_hf.training.loaders import first_row
from tests.data.test_torch_data import Fragile
from tests.distributed.processes import run
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


N_ROWS = 80


def table(rows: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


class Drawing(torch.utils.data.Dataset):
    """Rows of a random transform."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return N_ROWS

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**random_rows(1)[0], "text": str(self.generator.integers(2**62))}


class DrawingStream(torch.utils.data.IterableDataset):
    def __init__(self, seed: int) -> None:
        self.drawing = Drawing(seed)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.drawing[index] for index in range(N_ROWS))


class FragileStream(torch.utils.data.IterableDataset):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def made(kind: str, rank: int) -> Any:
    """What a rank holds; ranks differ where `rank` is used."""
    rows = random_rows(N_ROWS)
    with_paths = [{**row, "path": f"/host{rank}/{index}", "image": f"/host{rank}/{index}.png"} for index, row in
                  enumerate(rows)]  # fmt: skip
    swapped = [{**row, "image": other["image"]} for row, other in zip(rows, rows[::-1], strict=True)]
    return {
        "the same rows": lambda: rows,
        "a list here, a table there": lambda: [rows, table(rows)][rank],
        "files of the same names in another folder": lambda: with_paths,
        "a shuffle with a seed": lambda: table(rows).shuffle(seed=1),
        "a column that nobody reads": lambda: [{**row, "note": rank} for row in rows],
        "a random transform": lambda: Drawing(rank),
        "a stream": lambda: table(rows).to_iterable_dataset(4).shuffle(seed=1, buffer_size=20),
        "a stream that draws": lambda: DrawingStream(rank),
        "a random transform on one rank": lambda: [rows, Drawing(1)][rank],
        "other rows": lambda: random_rows(N_ROWS, seed=rank),
        "another order": lambda: rows[:: 1 - 2 * rank],
        "a shuffle without a seed": lambda: table(rows).shuffle(seed=rank),
        "other captions": lambda: [{**row, "text": f"{row['text']} and {rank}"} for row in rows],
        "other images": lambda: [rows, swapped][rank],
        "another number of rows": lambda: rows[rank:],
        "another stream": lambda: table(random_rows(N_ROWS, seed=rank)).to_iterable_dataset(4),
        "a stream in another order": lambda: table(rows).to_iterable_dataset(4).shuffle(seed=rank, buffer_size=20),
        "a row that is broken everywhere": lambda: [None, *rows[1:]],
        "a row that one rank cannot read": lambda: Fragile([*rows[:-1], [rows[-1], OSError("gone")][rank]]),
        "a first row that one rank cannot read": lambda: Fragile([[rows[0], OSError("gone")][rank], *rows[1:]]),
        "a stream whose first row one rank cannot read": lambda: FragileStream([[rows[0], None][rank], *rows[1:]]),
        "other captions beside a broken row": lambda: [None, *({**row, "text": f"{rank}"} for row in rows[1:])],
        "other captions of another column beside a broken row": lambda: [
            None,
            *({"image": row["image"], "caption": f"{rank}"} for row in rows[1:]),
        ],
        "one rank that can read nothing": lambda: [rows, [None] * N_ROWS][rank],
    }[kind]()


ACCEPTED = (
    "the same rows",
    "a list here, a table there",
    "files of the same names in another folder",
    "a shuffle with a seed",
    "a column that nobody reads",
    "a random transform",
    "a stream",
    "a stream that draws",
    "a row that is broken everywhere",
    "a row that one rank cannot read",
    "a first row that one rank cannot read",
    "a stream whose first row one rank cannot read",
)
REFUSED = (
    "a random transform on one rank",
    "other rows",
    "another order",
    "a shuffle without a seed",
    "other captions",
    "other images",
    "another number of rows",
    "another stream",
    "a stream in another order",
    "other captions beside a broken row",
    "other captions of another column beside a broken row",
    "one rank that can read nothing",
)


def _said(kinds: tuple[str, ...]) -> list[str]:
    """What the check says on this rank of each kind of data."""
    ranks, collator = Ranks.world(), JESTDataCollator(tiny_siglip_processor())
    logging.getLogger("transformers").setLevel(logging.ERROR)
    said = []
    for kind in kinds:
        dataset = made(kind, ranks.rank)
        stream = isinstance(dataset, datasets.IterableDataset | torch.utils.data.IterableDataset)
        try:
            check_same_rows(ranks, dataset, collator, first_row(dataset, "image", stream))
        except ValueError as error:
            said.append(str(error))
        else:
            said.append("")
    return said


def test_two_ranks_with_the_same_rows_are_accepted() -> None:
    for of_rank in run(2, _said, ACCEPTED):
        assert dict(zip(ACCEPTED, of_rank, strict=True)) == dict.fromkeys(ACCEPTED, "")


def test_two_ranks_with_different_rows_are_refused_alike() -> None:
    first, second = run(2, _said, REFUSED)
    assert first == second
    for kind, said in zip(REFUSED, first, strict=True):
        assert said.startswith("the ranks hold different training data: "), kind
        assert "pass the same " in said
    assert "[80, 79] rows" in first[REFUSED.index("another number of rows")]
    assert "the first row of the stream has" in first[REFUSED.index("another stream")]


def _made_trainer(folder: str, kind: str) -> str:
    """How the construction of a trainer on this rank ends."""
    settings = {"output_dir": folder, "use_cpu": True, "report_to": "none", "max_steps": 1}
    try:
        JESTTrainer(
            model=tiny_siglip(0),
            ref_model=tiny_siglip(1),
            args=JESTConfig(per_device_train_batch_size=8, filter_ratio=0.5, **settings),
            train_dataset=made(kind, Ranks.world().rank),
            processing_class=tiny_siglip_processor(),
        )
    except ValueError as error:
        return str(error)
    return "made"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["other rows", "another stream"])
def test_a_trainer_is_refused_before_the_first_step(tmp_path: Path, kind: str) -> None:
    for said in run(2, _made_trainer, str(tmp_path), kind):
        assert said.startswith("the ranks hold different training data")
