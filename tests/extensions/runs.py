# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of extensions share: runs on ONE super-batch, and losses that Hugging Face models compute of it."""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from jest_hf import JESTTrainer
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.trainers import arguments


SUPER_BATCH = 32  # of 8 that are trained on
ROWS = random_rows(SUPER_BATCH)


def selected(trainer: JESTTrainer) -> list[list[int]]:
    """Train; return the ids that each step trained on."""
    steps, learn = [], trainer.learn

    def spy(model: Any, batch: dict[str, Tensor], *args: Any) -> Tensor:
        steps.append(batch["example_id"].tolist())
        return learn(model, batch, *args)

    trainer.learn = spy
    trainer.train()
    return steps


def pair_trainer(folder: Any, reference: Any = 1, options: dict[str, Any] | None = None, **changes: Any):
    """A trainer whose super-batches are all of `ROWS`; `reference` is the seed of its weights, or `None` for none."""
    return JESTTrainer(
        model=tiny_siglip(0),
        args=arguments(folder, **changes),
        train_dataset=ROWS,
        processing_class=tiny_siglip_processor(),
        ref_model=None if reference is None else tiny_siglip(reference),
        **(options or {}),
    )


@torch.no_grad()
def pair_losses(seed: int) -> Tensor:
    """The sigmoid loss of each row's own pair under `tiny_siglip(seed)`, float32 `[32]`, as transformers has it."""
    inputs = tiny_siglip_processor()(
        images=[Image.open(io.BytesIO(row["image"]["bytes"])) for row in ROWS],
        text=[row["text"] for row in ROWS],
        padding="max_length",
        return_tensors="pt",
    )
    return F.softplus(-tiny_siglip(seed).eval()(**inputs).logits_per_image.diagonal())


def highest(scores: Tensor, n: int = 8) -> set[int]:
    """The rows with the n highest scores, which no rounding can confuse with the next one."""
    ordered, rows = scores.sort(descending=True)
    assert ordered[n - 1] - ordered[n] > 1e-5
    return set(rows[:n].tolist())
