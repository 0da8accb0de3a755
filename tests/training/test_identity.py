# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a resume compares besides options: equal for the same reference and rows, different for others."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import numpy as np
import torch

from jest_hf.training.identity import identify_run
from tests.helpers import random_rows, tiny_siglip


OBJECTIVE = SimpleNamespace(loss_kind="sigmoid", name="contrastive")
ROWS = random_rows(40)


def rows_of(dataset, first=None):
    first = ROWS[0] if first is None else first
    return identify_run(OBJECTIVE, None, dataset, "image", first)["train_dataset"]


def weights_of(model):
    return identify_run(OBJECTIVE, model, None, None, None)["ref_model"]


def test_rows_are_the_same_however_they_are_held():
    table = datasets.Dataset.from_list(ROWS)
    assert rows_of(ROWS) == rows_of(list(ROWS)) == rows_of(table) == rows_of(table.with_format("torch"))


def test_another_order_other_captions_and_other_images_are_other_rows():
    changed = [{**row, "text": "a red star"} for row in ROWS]
    swapped = [{**row, "image": other["image"]} for row, other in zip(ROWS, ROWS[::-1], strict=True)]
    found = [rows_of(rows)["rows"] for rows in (ROWS, ROWS[::-1], changed, swapped, ROWS[:20])]
    assert len(set(found)) == len(found)


def test_moved_image_files_are_the_same_rows():
    old, new = ([{"image": f"{folder}/{n}.png", "text": "a"} for n in range(5)] for folder in ("/old", "/new/place"))
    assert rows_of(old) == rows_of(new)


def test_rows_that_are_drawn_anew_or_cannot_be_read_are_not_compared():
    generator = np.random.default_rng(0)

    class Drawn(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return {**ROWS[index], "text": str(generator.integers(2**62))}

    class Broken(Drawn):
        def __getitem__(self, index):
            raise OSError("no disk")

    assert rows_of(Drawn()) is None and rows_of(Broken()) is None


def test_a_stream_is_described_by_its_first_row():
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    assert rows_of(stream, ROWS[0]) == rows_of(stream, dict(ROWS[0])) != rows_of(stream, ROWS[1])


def test_another_reference_has_other_weights():
    assert weights_of(tiny_siglip(0)) == weights_of(tiny_siglip(0)) != weights_of(tiny_siglip(1))
    assert weights_of(tiny_siglip(0).to(torch.float64)) == weights_of(tiny_siglip(0))
    assert weights_of(None) is None


def test_an_adapted_learner_is_a_reference_without_what_is_trained():
    from peft import LoraConfig

    from jest_hf.models import add_adapter

    def learner(seed):
        return add_adapter(tiny_siglip(seed), LoraConfig(r=2, target_modules=["q_proj"]))

    first, trained = learner(0), learner(0)
    with torch.no_grad():
        for weight in (weight for weight in trained.parameters() if weight.requires_grad):
            weight.add_(1.0)
    assert weights_of(first) == weights_of(trained) != weights_of(learner(1))
