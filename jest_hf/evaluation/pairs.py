# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Embed a whole data set of images with captions, for evaluation."""

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
from jest_hf.models import IMAGE_KEYS


class CaptionCollator:
    """Makes an evaluation batch of n images and ALL their m captions (a super-batch has one caption per image).

    Args:
        collator ([`JESTDataCollator`]): Reads images and captions; after [`~JESTDataCollator.at_view`] also images at
            the view.
        group_column (`str`, *optional*): Column whose equal values are a group: each image of a group is right for
            each caption of the group. By default every row is a group.

    Returns (from a call):
        The learner's keys of the super-batch, images `[n, ...]` and texts `[m, ...]`, and `caption_of` (int64 `[m]`,
        row of the image of each caption), `groups` (list of n values) and `skipped` (number of broken rows, which are
        left out). For n = 0 the batch has one blank image and one blank text, so that it can be fed to a model.

    Raises:
        ValueError: In a call, if the rows have no column `group_column`.
    """

    def __init__(self, collator: JESTDataCollator, group_column: str | None = None) -> None:
        self.collator = collator
        self.group_column = group_column

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if not rows:
            return self._blank(skipped=0)
        if self.group_column is not None and self.group_column not in rows[0]:
            raise ValueError(
                f"eval_group_column={self.group_column!r} is not a column of the evaluation data (there are: "
                f"{', '.join(sorted(rows[0]))}); name one of these, or leave eval_group_column out."
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
    """The embeddings of a data set under one model, on the CPU.

    Args:
        image (`torch.Tensor`): Image embeddings, fp32 `[N, D]`.
        text (`torch.Tensor`): Embeddings of all captions, fp32 `[M, D]`.
        image_groups, text_groups (`torch.Tensor`): Groups, int64 `[N]` and `[M]`; images and captions of the same
            group are right for each other.
        loss (`float`): Mean contrastive loss of the batches, each image with its first caption.
        skipped (`int`): Number of broken rows, which are left out.
    """

    image: Tensor
    text: Tensor
    image_groups: Tensor
    text_groups: Tensor
    loss: float
    skipped: int
    label_ids: ClassVar[None] = None  # pairs have no labels

    @property
    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """The embeddings of images and texts."""
        return self.image.numpy(), self.text.numpy()

    @property
    def n_examples(self) -> int:
        """Number of images."""
        return len(self.image)

    def metrics(self) -> dict[str, float]:
        """Return `loss`, the recalls of [`retrieval_recall`] and `examples_skipped`."""
        recalls = retrieval_recall(self.image, self.text, self.image_groups, self.text_groups)
        return {"loss": self.loss, **recalls, "examples_skipped": self.skipped}


@torch.no_grad()
def embed_dataset(
    read: Callable[..., Any],
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    device: torch.device,
    loss: str,
    ranks: Ranks | None = None,
) -> Embedded:
    """Embed the batches of a [`CaptionCollator`] with a model in eval mode. A collective.

    Args:
        read (`Callable`): `read(model, batch)` makes one forward and returns a
            [`~jest_hf.models.DualEncoderOutput`], such as a [`~jest_hf.models.DualEncoder`].
        model (`torch.nn.Module`): The model, wrapped or not.
        batches (iterable): This rank's batches, the same number on every rank (see
            [`~jest_hf.data.rows.share_batches`]), since a forward is a collective under some engines.
        device (`torch.device`): Device of the model.
        loss (`str`): `"sigmoid"` or `"softmax"`.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The processes that share the data set; by default this
            process alone.

    Returns:
        [`Embedded`]: Embeddings of the whole data set, in the order of its rows, on every rank: the same as from one
        process.

    Raises:
        ValueError: On all ranks, if no row can be read.
    """
    ranks = ranks or Ranks()
    model.eval()
    columns: dict[str, list[Tensor]] = {"image": [], "text": [], "image_groups": [], "text_groups": []}
    own_losses: list[float] = []
    number_of: dict[Any, int] = {}
    skipped = 0
    for batch in batches:
        skipped += batch["skipped"]
        tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        output = read(model, tensors)
        caption_of, n = batch["caption_of"].cpu(), len(batch["groups"])
        image, text = output.image_embeds[:n].float(), output.text_embeds[: len(caption_of)].float()
        numbers = [number_of.setdefault(group, len(number_of)) for group in batch["groups"]]
        groups = torch.tensor(numbers, dtype=torch.int64)
        if n > 0:
            first_captions = torch.searchsorted(caption_of, torch.arange(n))
            loss_of_batch = LOSSES[loss](image, text[first_captions], output.logit_scale, output.logit_bias)
            own_losses.append(loss_of_batch.item())
        rows = {"image": image.cpu(), "text": text.cpu(), "image_groups": groups, "text_groups": groups[caption_of]}
        for name, values in rows.items():
            columns[name].append(values)
    skipped = sum(ranks.gather_counts(skipped, device))
    losses = gather_to_cpu(ranks, torch.tensor(own_losses, dtype=torch.float64), device).tolist()
    if not losses:
        raise ValueError(f"not one of the {skipped} evaluation rows can be read; check the image and caption columns.")
    common = _common_numbers(ranks, list(number_of), device)
    own = {name: torch.cat(columns.pop(name)) for name in list(columns)}  # pop: without a second copy of all rows
    own |= {name: common[own[name]] for name in ("image_groups", "text_groups")}
    gathered = {name: gather_to_cpu(ranks, values, device) for name, values in own.items()}
    return Embedded(**gathered, loss=sum(losses) / len(losses), skipped=skipped)


def _common_numbers(ranks: Ranks, groups: list[Any], device: torch.device) -> Tensor:
    """Number the groups (int64) as one process would, in the order of the rows. A collective."""
    number_of: dict[Any, int] = {}
    for group in chain.from_iterable(gather_objects(ranks, groups, device)):
        number_of.setdefault(group, len(number_of))
    return torch.tensor([number_of[group] for group in groups], dtype=torch.int64)
