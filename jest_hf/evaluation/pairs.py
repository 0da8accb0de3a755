# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""From a model and a data set to the embeddings that the metrics take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from jest_hf.batch import VIEW_PREFIX
from jest_hf.data.collator import JESTDataCollator
from jest_hf.distributed import Ranks, gather_objects, gather_to_cpu
from jest_hf.evaluation.retrieval import retrieval_recall
from jest_hf.losses import LOSSES
from jest_hf.models import IMAGE_KEYS, DualEncoderOutput


class CaptionCollator:
    """
    Rows to an evaluation batch of n images and ALL their m captions (a super-batch has one caption an image).

    Args:
        collator ([`JESTDataCollator`]): how images and captions are read; after [`~JESTDataCollator.at_view`] the
            images are there at the view too.
        group_column (`str`, *optional*): column whose equal values mean the same thing; default: every row for itself.

    Returns (from a call):
        The learner's keys of the super-batch, images `[n, ...]`, texts `[m, ...]`, and `caption_of` (int64 `[m]`, the
        image a caption belongs to), `groups` (list of n), `skipped` (number of broken rows, which are left out). Where
        n is 0 there is one blank image and one blank text all the same: every batch can go through a model.
    """

    def __init__(self, collator: JESTDataCollator, group_column: str | None = None) -> None:
        self.collator = collator
        self.group_column = group_column

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if not rows:
            return self._blank(skipped=0)
        if self.group_column is not None and self.group_column not in rows[0]:
            raise ValueError(
                f"eval_group_column={self.group_column!r} is not a column of the evaluation data; "
                f"it has {', '.join(sorted(rows[0]))}."
            )
        batch = self.collator(rows)
        kept = batch["valid"].nonzero().flatten().tolist()
        if not kept:
            return self._blank(skipped=len(rows))
        captions = [self.collator.captions(rows[index]) for index in kept]
        flat = [caption for several in captions for caption in several]
        caption_of = [image for image, several in enumerate(captions) for _ in several]
        groups = [rows[index][self.group_column] if self.group_column else rows[index]["example_id"] for index in kept]
        return {
            **{name: value[kept] for name, value in batch.items() if name.removeprefix(VIEW_PREFIX) in IMAGE_KEYS},
            **self.collator.tokenize(flat),
            "caption_of": torch.tensor(caption_of, dtype=torch.int64),
            "groups": groups,
            "skipped": len(rows) - len(kept),
        }

    def _blank(self, skipped: int) -> dict[str, Any]:
        no_caption = torch.empty(0, dtype=torch.int64)
        return {**self.collator.blank(), "caption_of": no_caption, "groups": [], "skipped": skipped}


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
    label_ids: ClassVar[None] = None  # images and captions are each other's

    @property
    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """The embeddings of images and texts."""
        return self.image.numpy(), self.text.numpy()

    @property
    def n_examples(self) -> int:
        """Images."""
        return len(self.image)

    def metrics(self) -> dict[str, float]:
        """`loss`, the recalls of [`retrieval_recall`] and `examples_skipped`."""
        recalls = retrieval_recall(self.image, self.text, self.image_groups, self.text_groups)
        return {"loss": self.loss, **recalls, "examples_skipped": self.skipped}


@torch.no_grad()
def embed_dataset(
    read: Callable[..., DualEncoderOutput],
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    device: torch.device,
    loss: str,
    ranks: Ranks | None = None,
) -> Embedded:
    """
    Embed the batches of a [`CaptionCollator`], in eval mode.

    Args:
        read (`Callable`): `read(model, batch)` is one forward: a [`~jest_hf.models.DualEncoder`], or one at a view.
        model (`torch.nn.Module`): the model, wrapped or not.
        batches (iterable): this rank's batches, as many as every other rank's ([`~data.rows.share_batches`] sees to
            it): each is one forward, a collective under some engines.
        device (`torch.device`): the model's.
        loss (`str`): `"sigmoid"` or `"softmax"`.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): who shares the data set; `None` is this process alone.

    Returns:
        [`Embedded`]: the whole data set, on every rank, in the order of ranks: the same as of one process.

    Raises:
        ValueError: on all ranks, if no row can be read.
    """
    ranks = ranks or Ranks()
    model.eval()
    images, texts, image_groups, text_groups, losses = [], [], [], [], []
    number_of: dict[Any, int] = {}
    skipped = 0
    for batch in batches:
        skipped += batch["skipped"]
        tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        output = read(model, tensors)
        caption_of, n = batch["caption_of"].cpu(), len(batch["groups"])
        image, text = output.image_embeds[:n].float(), output.text_embeds[: len(caption_of)].float()
        groups = [number_of.setdefault(group, len(number_of)) for group in batch["groups"]]
        groups = torch.tensor(groups, dtype=torch.int64)
        if n > 0:
            first_captions = torch.searchsorted(caption_of, torch.arange(n))
            losses.append(LOSSES[loss](image, text[first_captions], output.logit_scale, output.logit_bias).item())
        images.append(image.cpu())
        texts.append(text.cpu())
        image_groups.append(groups)
        text_groups.append(groups[caption_of])
    skipped = sum(ranks.gather_counts(skipped, device))
    losses = gather_to_cpu(ranks, torch.tensor(losses, dtype=torch.float64), device).tolist()
    if not losses:
        raise ValueError(f"not one of the {skipped} evaluation rows can be read; check the image and caption columns.")
    numbers = _common_numbers(ranks, list(number_of), device)
    return Embedded(
        image=gather_to_cpu(ranks, torch.cat(images), device),
        text=gather_to_cpu(ranks, torch.cat(texts), device),
        image_groups=gather_to_cpu(ranks, numbers[torch.cat(image_groups)], device),
        text_groups=gather_to_cpu(ranks, numbers[torch.cat(text_groups)], device),
        loss=sum(losses) / len(losses),
        skipped=skipped,
    )


def _common_numbers(ranks: Ranks, groups: list[Any], device: torch.device) -> Tensor:
    """Numbers for these groups (int64), the same on all ranks: in the order in which one process would meet them."""
    number_of: dict[Any, int] = {}
    for group in chain.from_iterable(gather_objects(ranks, groups, device)):
        number_of.setdefault(group, len(number_of))
    return torch.tensor([number_of[group] for group in groups], dtype=torch.int64)
