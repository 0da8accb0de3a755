# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""From a model and a data set to the embeddings that the metrics take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jest_hf.collator import JESTDataCollator
from jest_hf.evaluation.retrieval import retrieval_recall
from jest_hf.losses import LOSSES
from jest_hf.models import IMAGE_KEYS, DualEncoder


class CaptionCollator:
    """
    Rows to an evaluation batch of n images and ALL their m captions (a super-batch has one caption an image).

    Args:
        collator ([`JESTDataCollator`]): how images and captions are read.
        group_column (`str`, *optional*): column whose equal values mean the same thing; default: every row for itself.

    Returns (from a call):
        The learner's keys of the super-batch, images `[n, ...]`, texts `[m, ...]`, and `caption_of` (int64 `[m]`, the
        image a caption belongs to), `groups` (list of n), `skipped` (number of broken rows, which are left out).
    """

    def __init__(self, collator: JESTDataCollator, group_column: str | None = None) -> None:
        self.collator = collator
        self.group_column = group_column

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if self.group_column is not None and self.group_column not in rows[0]:
            raise ValueError(
                f"eval_group_column={self.group_column!r} is not a column of the evaluation data; "
                f"it has {', '.join(sorted(rows[0]))}."
            )
        batch = self.collator(rows)
        kept = batch["valid"].nonzero().flatten().tolist()
        captions = [self.collator.captions(rows[index]) for index in kept]
        flat = [caption for several in captions for caption in several]
        caption_of = [image for image, several in enumerate(captions) for _ in several]
        groups = [rows[index][self.group_column] if self.group_column else rows[index]["example_id"] for index in kept]
        images = {name: value[kept] for name, value in batch.items() if name in IMAGE_KEYS}
        texts = self.collator.tokenize(flat) if flat else {}
        return {
            **images,
            **texts,
            "caption_of": torch.tensor(caption_of, dtype=torch.int64),
            "groups": groups,
            "skipped": len(rows) - len(kept),
        }


@dataclass
class Embedded:
    """
    A data set as one model sees it.

    Args:
        image (`torch.Tensor`): fp32 `[N, D]`, on the CPU.
        text (`torch.Tensor`): fp32 `[M, D]`, all captions.
        image_groups, text_groups (`torch.Tensor`): int64 `[N]` and `[M]`: equal numbers are hits of each other.
        loss (`float`): mean contrastive loss of the batches, each image with its first caption.
        skipped (`int`): broken rows that were left out.
    """

    image: Tensor
    text: Tensor
    image_groups: Tensor
    text_groups: Tensor
    loss: float
    skipped: int

    def metrics(self) -> dict[str, float]:
        """`loss`, the recalls of [`retrieval_recall`] and `examples_skipped`."""
        recalls = retrieval_recall(self.image, self.text, self.image_groups, self.text_groups)
        return {"loss": self.loss, **recalls, "examples_skipped": self.skipped}


@torch.no_grad()
def embed_dataset(
    view: DualEncoder, model: nn.Module, batches: Iterable[Mapping[str, Any]], device: torch.device, loss: str
) -> Embedded:
    """Embed the batches of a [`CaptionCollator`], in eval mode; `ValueError` where no row can be read."""
    model.eval()
    images, texts, image_groups, text_groups, losses = [], [], [], [], []
    number_of: dict[Any, int] = {}
    skipped = 0
    for batch in batches:
        skipped += batch["skipped"]
        if not batch["groups"]:
            continue
        tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        output = view(model, tensors)
        image, text = output.image_embeds.float(), output.text_embeds.float()
        groups = torch.tensor([number_of.setdefault(group, len(number_of)) for group in batch["groups"]])
        caption_of = batch["caption_of"].cpu()
        first_captions = torch.searchsorted(caption_of, torch.arange(len(groups)))
        losses.append(LOSSES[loss](image, text[first_captions], output.logit_scale, output.logit_bias).item())
        images.append(image.cpu())
        texts.append(text.cpu())
        image_groups.append(groups)
        text_groups.append(groups[caption_of])
    if not images:
        raise ValueError(f"not one of the {skipped} evaluation rows can be read; check the image and caption columns.")
    return Embedded(
        image=torch.cat(images),
        text=torch.cat(texts),
        image_groups=torch.cat(image_groups),
        text_groups=torch.cat(text_groups),
        loss=sum(losses) / len(losses),
        skipped=skipped,
    )
