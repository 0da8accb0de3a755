# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The reference's embeddings of every training row, computed once.

A frozen model says the same about an example every time. Over several epochs, embedding the data set once costs less
than embedding every super-batch, and the selection is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.utils import logging

from jest_hf.collator import JESTDataCollator
from jest_hf.data.rows import Rows, share_batches
from jest_hf.distributed import Ranks, gather_to_cpu
from jest_hf.models import DualEncoder
from jest_hf.selection import ContrastiveEmbeddings


class SingleCaptionCollator:
    """
    A [`JESTDataCollator`] that refuses rows with several captions: the one drawn changes from epoch to epoch.

    Of no rows it makes one blank example with the id -1, so that every batch can go through a model.
    """

    def __init__(self, collator: JESTDataCollator) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if not rows:
            return self._blank()
        batch = self.collator(rows)
        for row, valid in zip(rows, batch["valid"].tolist(), strict=True):
            if valid and len(self.collator.captions(row)) > 1:
                raise ValueError(
                    f"cache_reference=True, but row {row['example_id']} has several captions, of which another may be "
                    "drawn in each epoch; keep one caption a row, or set cache_reference=False."
                )
        return batch

    def _blank(self) -> dict[str, Tensor]:
        batch = {"example_id": torch.tensor([-1])}
        for prefix, geometry in self.collator.geometries.items():
            batch |= {prefix + name: torch.from_numpy(array) for name, array in geometry.empty(1).items()}
        for prefix, text in self.collator.texts.items():
            batch |= {prefix + name: tokens for name, tokens in text([""]).items()}
        return batch


def embed_rows(
    view: DualEncoder,
    model: nn.Module,
    rows: Rows,
    collator: JESTDataCollator,
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
    disable_tqdm: bool = False,
    ranks: Ranks | None = None,
) -> ContrastiveEmbeddings:
    """
    Embed every row once, in order: fp32 `[N, D]` on the CPU, so that row i is the example with id i.

    Broken rows keep their place; what they hold is never used, since broken rows are never selected. With `ranks` each
    embeds its share, in as many forwards as every other, and all of them get all rows.
    """
    ranks = ranks or Ranks()
    loader = DataLoader(
        rows,
        batch_sampler=share_batches(len(rows), batch_size, ranks),
        collate_fn=SingleCaptionCollator(collator),
        num_workers=num_workers,
    )
    silent = disable_tqdm or ranks.rank > 0
    parts = []
    for batch in logging.tqdm(loader, desc="Caching the reference", unit="batch", disable=silent):
        part = view.embed(model, {name: value.to(device) for name, value in batch.items()}, batch_size)
        n = int((batch["example_id"] >= 0).sum())
        parts.append((part.image[:n].cpu(), part.text[:n].cpu()))
    image, text = (gather_to_cpu(ranks, torch.cat(halves), device) for halves in zip(*parts, strict=True))
    return ContrastiveEmbeddings(image, text, part.logit_scale, part.logit_bias)
