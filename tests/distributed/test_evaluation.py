# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation and the cached reference over ranks: what one process finds, in equal numbers of forwards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from jest_hf import JESTDataCollator
from jest_hf.data.rows import Rows, share_batches
from jest_hf.distributed import Ranks
from jest_hf.evaluation import ZeroShotCallback
from jest_hf.evaluation.pairs import CaptionCollator, embed_dataset
from jest_hf.models import DualEncoder, expose_temperature
from tests.distributed.processes import run
from tests.helpers import (
    COLOURS,
    random_rows,
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip2,
    tiny_siglip2_processor,
    tiny_siglip_processor,
)


FAMILIES = {
    "siglip": (tiny_siglip, tiny_siglip_processor, "sigmoid"),
    "siglip2": (tiny_siglip2, tiny_siglip2_processor, "sigmoid"),
    "clip": (tiny_clip, tiny_clip_processor, "softmax"),
}


class Counted(torch.nn.Module):
    """A model that counts its forwards, and waits in each for the other ranks, as engines do."""

    def __init__(self, model: torch.nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.model, self.ranks, self.forwards = model, ranks, 0

    def forward(self, **inputs: Any) -> Any:
        self.forwards += 1
        self.ranks.sum(torch.ones(1))
        return self.model(**inputs)


def captioned_rows(n: int, broken: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rows of one to three captions and of a topic that others share, some of them unreadable."""
    rows = random_rows(n)
    for index, row in enumerate(rows):
        row["text"] = [f"a {COLOURS[(index + k) % 5]} star" for k in range(1 + index % 3)]
        row["topic"] = f"topic {index * 7 % 4}" if index % 5 else None
        row["label"] = index % 5
        if index in broken:
            row["image"] = b"no image"
    return rows


def _evaluate(
    family: str, rows: list[dict[str, Any]], batch_size: int, group_column: str | None
) -> tuple[dict[str, Any], int]:
    ranks = Ranks.world()
    make_model, make_processor, loss = FAMILIES[family]
    model, processor = make_model(0), make_processor()
    expose_temperature(model)
    counted = Counted(model, ranks)
    loader = DataLoader(
        Rows(rows),
        batch_sampler=share_batches(len(rows), batch_size, ranks),
        collate_fn=CaptionCollator(JESTDataCollator(processor), group_column),
    )
    view = DualEncoder(model.config, processor)
    found = embed_dataset(view, counted, loader, torch.device("cpu"), loss, ranks, loss_batch_size=3)
    about = {"metrics": found.metrics(), "skipped": found.skipped, "label_ids": found.label_ids.tolist()}
    return {**vars(found), **about}, counted.forwards


@pytest.mark.parametrize(
    "world_size, family, n, batch_size, broken",
    [
        (2, "siglip", 14, 4, (1, 8, 9, 10, 11)),  # the third batch has no usable row
        (4, "clip", 13, 2, (0, 1)),  # neither has the first of all
        (4, "siglip2", 3, 4, ()),  # fewer batches than ranks, and rows too
    ],
)
@pytest.mark.parametrize("group_column", [None, "topic"])
def test_every_rank_finds_what_one_process_finds(world_size, family, n, batch_size, broken, group_column):
    rows = captioned_rows(n, broken)
    expected, forwards = _evaluate(family, rows, batch_size, group_column)
    assert expected["skipped"] == len(broken)
    for found, forwards_of_rank in run(world_size, _evaluate, family, rows, batch_size, group_column):
        assert forwards_of_rank == math.ceil(forwards / world_size)
        for name in ("image", "text", "image_groups", "text_groups", "readable"):
            assert torch.equal(found[name], expected[name]), name
        assert found["metrics"] == expected["metrics"] and found["label_ids"] == expected["label_ids"]


def _unreadable() -> str:
    try:
        _evaluate("siglip", captioned_rows(5, tuple(range(5))), 2, None)
    except ValueError as error:
        return str(error)
    return "no error"


def test_no_rank_waits_where_no_row_can_be_read():
    for said in run(2, _unreadable):
        assert "not one of the 5 evaluation rows can be read" in said


class _Trainer:
    """What a `ZeroShotCallback` asks of a trainer: a real one would need a launcher."""

    def __init__(self, family: str, batch_size: int) -> None:
        make_model, make_processor, _ = FAMILIES[family]
        model, processor = make_model(0), make_processor()
        expose_temperature(model)
        self.model_wrapped = Counted(model, Ranks.world())
        self.learner_view = DualEncoder(model.config, processor)
        self.data_collator = JESTDataCollator(processor)
        self.args = self
        self.eval_batch_size = batch_size
        self.dataloader_num_workers = 0
        self.device = torch.device("cpu")
        self.accelerator = self

    def autocast(self) -> torch.no_grad:
        return torch.no_grad()


def _classify(family: str, rows: list[dict[str, Any]], batch_size: int) -> tuple[dict[str, float], int]:
    trainer = _Trainer(family, batch_size)
    return ZeroShotCallback(
        trainer, rows, COLOURS, ("a {}", "{}", "a {} star")
    ).compute(), trainer.model_wrapped.forwards


@pytest.mark.parametrize(
    "world_size, family, n, batch_size, broken",
    [(2, "clip", 15, 4, (8, 9, 10, 11)), (4, "siglip", 26, 2, (0, 1, 25)), (4, "siglip2", 3, 8, (2,))],
)
def test_zero_shot_figures_are_those_of_one_process(world_size, family, n, batch_size, broken):
    rows = captioned_rows(n, broken)
    expected, _ = _classify(family, rows, batch_size)
    assert expected["examples_skipped"] == len(broken)
    forwards = math.ceil(3 * len(COLOURS) / (batch_size * world_size)) + math.ceil(n / batch_size / world_size)
    for found, forwards_of_rank in run(world_size, _classify, family, rows, batch_size):
        assert found == expected
        assert forwards_of_rank == forwards
