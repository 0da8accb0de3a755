# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Embed a whole data set of images with captions, for evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jest_hf.batch import VIEW_PREFIX
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.reasons import first_reasons
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
            each caption of the group. A row with `None`, NaN or `""` there is a group by itself. By default every row
            is a group.

    Returns (from a call):
        The learner's keys of the super-batch, images `[n, ...]` and texts `[m, ...]`, and `caption_of` (int64 `[m]`,
        row of the image of each caption), `groups` (list of n values) and `readable` (bool, for each of the rows:
        broken ones are left out). For n = 0 the batch has one blank image and one blank text, so that it can be fed to
        a model.

    Raises:
        ValueError: In a call, if the rows have no column `group_column`, or lists or dicts in it.
    """

    def __init__(self, collator: JESTDataCollator, group_column: str | None = None) -> None:
        self.collator = collator
        self.group_column = group_column

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if not rows:
            return self._blank(torch.zeros(0, dtype=torch.bool))
        if self.group_column is not None and self.group_column not in rows[0]:
            raise ValueError(
                f"eval_group_column={self.group_column!r} is not a column of the evaluation data (there are: "
                f"{', '.join(sorted(rows[0]))}); name one of these, or leave eval_group_column out."
            )
        batch = self.collator(rows)
        readable = batch["valid"]
        kept = readable.nonzero().flatten().tolist()
        if not kept:
            return self._blank(readable)
        captions = [self.collator.captions(rows[index]) for index in kept]
        flat = [caption for several in captions for caption in several]
        caption_of = [image for image, several in enumerate(captions) for _ in several]
        return {
            **{name: value[kept] for name, value in batch.items() if name.removeprefix(VIEW_PREFIX) in IMAGE_KEYS},
            **self.collator.tokenize(flat),
            "caption_of": torch.tensor(caption_of, dtype=torch.int64),
            "groups": [self._group(rows[index]) for index in kept],
            "readable": readable,
        }

    def _group(self, row: Mapping[str, Any]) -> Hashable:
        if self.group_column is None:
            return int(row["example_id"])
        value = row.get(self.group_column)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            return ("row", row["example_id"])
        if not isinstance(value, Hashable):
            raise ValueError(
                f"eval_group_column={self.group_column!r} holds a {type(value).__name__} ({str(value)[:40]}), and a "
                "group is one value; name a column of strings or integers."
            )
        return value

    def _blank(self, readable: Tensor) -> dict[str, Any]:
        no_caption = torch.empty(0, dtype=torch.int64)
        return {**self.collator.blank(), "caption_of": no_caption, "groups": [], "readable": readable}


@dataclass
class Embedded:
    """The embeddings of a data set under one model, on the CPU.

    Args:
        image (`torch.Tensor`): Embeddings of the images that could be read, fp32 `[N, D]`.
        text (`torch.Tensor`): Embeddings of all captions of these images, fp32 `[M, D]`.
        image_groups, text_groups (`torch.Tensor`): Groups, int64 `[N]` and `[M]`; images and captions of the same
            group are right for each other.
        n_captions (`torch.Tensor`): Number of captions of each image, int64 `[N]`.
        readable (`torch.Tensor`): Which rows of the data set are among the N, bool.
        loss (`float`): Contrastive loss of each image with its first caption; see [`embed_dataset`].
    """

    image: Tensor
    text: Tensor
    image_groups: Tensor
    text_groups: Tensor
    n_captions: Tensor
    readable: Tensor
    loss: float

    @property
    def predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """The embeddings of images, one for each row of the data set (NaN for a broken row), and of all captions."""
        images = torch.full((len(self.readable), self.image.shape[1]), torch.nan)
        images[self.readable] = self.image
        return images.numpy(), self.text.numpy()

    @property
    def label_ids(self) -> np.ndarray:
        """For each caption, the row of its image in the data set, int64 `[M]`."""
        return self.readable.nonzero().flatten().repeat_interleave(self.n_captions).numpy()

    @property
    def skipped(self) -> int:
        """Number of broken rows, which are left out."""
        return int((~self.readable).sum())

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
    loss_batch_size: int | None = None,
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
        loss_batch_size (`int`, *optional*): Pairs in a batch of the loss, which depends on it, whatever the batches of
            the forwards are. The batches follow each other in the order of the rows; if the pairs do not fill the
            last one, it begins earlier. By default, or with fewer pairs, all pairs are one batch.

    Returns:
        [`Embedded`]: Embeddings of the whole data set, in the order of its rows, on every rank: the same as from one
        process.

    Raises:
        ValueError: On all ranks, if no row can be read.
    """
    ranks = ranks or Ranks()
    model.eval()
    names = ("image", "text", "image_groups", "text_groups", "n_captions", "readable")
    columns: dict[str, list[Tensor]] = {name: [] for name in names}
    number_of: dict[Any, int] = {}
    temperature: tuple[Any, Any] = (1.0, None)
    for batch in batches:
        tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        output = read(model, tensors)
        caption_of, n = batch["caption_of"].cpu(), len(batch["groups"])
        image, text = output.image_embeds[:n].float(), output.text_embeds[: len(caption_of)].float()
        numbers = [number_of.setdefault(group, len(number_of)) for group in batch["groups"]]
        groups = torch.tensor(numbers, dtype=torch.int64)
        temperature = (output.logit_scale, output.logit_bias)
        rows = {
            "image": image.cpu(),
            "text": text.cpu(),
            "image_groups": groups,
            "text_groups": groups[caption_of],
            "n_captions": caption_of.bincount(minlength=n),
            "readable": batch["readable"].cpu(),
        }
        for name, values in rows.items():
            columns[name].append(values)
    readable = gather_to_cpu(ranks, torch.cat(columns.pop("readable")), device)
    if not readable.any():
        raise ValueError(
            f"not one of the {len(readable)} evaluation rows can be read "
            f"({first_reasons(getattr(batches, 'dataset', None), getattr(batches, 'collate_fn', None))}); check the "
            "image and caption columns."
        )
    common = _common_numbers(ranks, list(number_of), device)
    own = {name: torch.cat(columns.pop(name)) for name in list(columns)}  # pop: without a second copy of all rows
    own |= {name: common[own[name]] for name in ("image_groups", "text_groups")}
    gathered = {name: gather_to_cpu(ranks, values, device) for name, values in own.items()}
    first_captions = gathered["n_captions"].cumsum(0) - gathered["n_captions"]
    pairs = (gathered["image"], gathered["text"][first_captions])
    value = _mean_loss(loss, *pairs, *temperature, loss_batch_size or len(pairs[0]), ranks, device)
    return Embedded(**gathered, readable=readable, loss=value)


def _mean_loss(
    kind: str, image: Tensor, text: Tensor, scale: Any, bias: Any, size: int, ranks: Ranks, device: torch.device
) -> float:
    """The mean loss of batches of `size` pairs, which the ranks share. A collective."""
    n = len(image)
    size = min(size, n)
    starts = sorted({*range(0, n - size + 1, size), n - size})
    losses = torch.zeros(len(starts), dtype=torch.float64)
    for number in range(ranks.rank, len(starts), ranks.size):
        rows = slice(starts[number], starts[number] + size)
        losses[number] = LOSSES[kind](image[rows].to(device), text[rows].to(device), scale, bias).item()
    return float(ranks.gather(losses.to(device)).sum(dim=0).mean())


def _common_numbers(ranks: Ranks, groups: list[Any], device: torch.device) -> Tensor:
    """Number the groups (int64) as one process would, in the order of the rows. A collective."""
    number_of: dict[Any, int] = {}
    for group in chain.from_iterable(gather_objects(ranks, groups, device)):
        number_of.setdefault(group, len(number_of))
    return torch.tensor([number_of[group] for group in groups], dtype=torch.int64)
