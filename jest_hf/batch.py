# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The keys of a super-batch, and what a model computes of one.

A model computes embeddings of image-text pairs ([`ContrastiveEmbeddings`]) or one loss per example
([`PointwiseLosses`]).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


REF_PREFIX = "ref_"  # of keys that only the reference reads
IMAGE_KEYS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
TEXT_KEYS = ("input_ids", "attention_mask")
VIEW_PREFIX = "view_"  # of images at the scoring view
CACHED_PREFIX = "cached_"  # of the reference's cached scores, which the loader's workers read; see `as_bits`

_BITS = {torch.float16: torch.int16, torch.float32: torch.int32}


@dataclass(frozen=True, init=False)
class ContrastiveEmbeddings:
    """Image and text embeddings of one batch under one model.

    The logit of image i and text j is ``logit_scale * image[i] @ text[j] + logit_bias`` (arXiv 2303.15343, section 3).

    Args:
        image (`torch.Tensor`): L2-normalised image embeddings, `[B, D]`, any floating dtype.
        text (`torch.Tensor`): L2-normalised text embeddings, `[B, D]`; row i is the caption of image i.
        logit_scale (`float` or `torch.Tensor`): The multiplier itself, not its logarithm. A tensor has one element.
        logit_bias (`float` or `torch.Tensor`, *optional*): Added to every logit; `None` (CLIP has none) means 0.

    The scale and bias are stored as plain floats, as selection needs no gradient through them.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the scale or bias is not one finite number.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.selection import ContrastiveEmbeddings
    >>> embeddings = ContrastiveEmbeddings(torch.eye(3), torch.eye(3), logit_scale=torch.tensor(10.0), logit_bias=-10)
    >>> len(embeddings), embeddings.logit_scale, embeddings.logit_bias
    (3, 10.0, -10.0)

    ```
    """

    image: Tensor
    text: Tensor
    logit_scale: float
    logit_bias: float

    def __init__(
        self, image: Tensor, text: Tensor, logit_scale: float | Tensor, logit_bias: float | Tensor | None = None
    ) -> None:
        if image.ndim != 2 or image.shape != text.shape:
            raise ValueError(
                "image and text embeddings must both be [B, D] with the same B and D, got "
                f"{list(image.shape)} and {list(text.shape)}."
            )
        if not (image.is_floating_point() and text.is_floating_point()):
            raise ValueError(f"embeddings must be floating point, got {image.dtype} and {text.dtype}.")
        if image.device != text.device:
            raise ValueError(
                f"image and text embeddings must be on one device, got {image.device} and {text.device}: move one of "
                "them."
            )
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "text", text)
        numbers = {"logit_scale": logit_scale, "logit_bias": 0.0 if logit_bias is None else logit_bias}
        for name, value in _as_floats(numbers).items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return self.image.shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the embeddings."""
        return self.image.device

    def take(self, indices: Tensor) -> ContrastiveEmbeddings:
        """Return the embeddings of the examples at `indices` (int64 `[n]`), in that order."""
        return ContrastiveEmbeddings(self.image[indices], self.text[indices], self.logit_scale, self.logit_bias)

    def to(self, device: torch.device | str) -> ContrastiveEmbeddings:
        """Return the same embeddings on `device`."""
        return ContrastiveEmbeddings(self.image.to(device), self.text.to(device), self.logit_scale, self.logit_bias)

    def columns(self) -> dict[str, Tensor]:
        """Return the tensors with one row per example: `image` and `text`, `[B, D]`."""
        return {"image": self.image, "text": self.text}

    def with_columns(self, columns: Mapping[str, Tensor]) -> ContrastiveEmbeddings:
        """Return the same for other examples, with tensors like those of `columns()`."""
        return ContrastiveEmbeddings(columns["image"], columns["text"], self.logit_scale, self.logit_bias)


@dataclass(frozen=True)
class PointwiseLosses:
    """Losses of the examples of one batch under one model, such as a classifier or a language model.

    Args:
        losses (`torch.Tensor`): One loss per example, in nats, float32 `[B]`.

    Raises:
        ValueError: if `losses` is not a float32 vector.
    """

    losses: Tensor

    def __post_init__(self) -> None:
        if self.losses.ndim != 1 or self.losses.dtype != torch.float32:
            raise ValueError(
                f"losses must be float32 of shape [B], got {self.losses.dtype} {list(self.losses.shape)}: pass one "
                "loss per example, in full precision."
            )

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def device(self) -> torch.device:
        """The device of the losses."""
        return self.losses.device

    def take(self, indices: Tensor) -> PointwiseLosses:
        """Return the losses of the examples at `indices` (int64 `[n]`), in that order."""
        return PointwiseLosses(self.losses[indices])

    def to(self, device: torch.device | str) -> PointwiseLosses:
        """Return the same losses on `device`."""
        return PointwiseLosses(self.losses.to(device))

    def columns(self) -> dict[str, Tensor]:
        """Return the tensors with one row per example: `losses`, `[B]`."""
        return {"losses": self.losses}

    def with_columns(self, columns: Mapping[str, Tensor]) -> PointwiseLosses:
        """Return the same for other examples, with tensors like those of `columns()`."""
        return PointwiseLosses(**columns)


def as_bits(values: Tensor) -> Tensor:
    """Return float16 or float32 values as integers of the same bits, without a copy: the Trainer casts every float
    tensor of a super-batch to DeepSpeed's dtype, and cached scores must arrive as they are."""
    return values.view(_BITS[values.dtype])


def from_bits(bits: Tensor) -> Tensor:
    """Return the float32 values of integers made by [`as_bits`]."""
    return bits.view({integer: floating for floating, integer in _BITS.items()}[bits.dtype]).float()


def without_cached(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return rows without the reference's cached scores, which no model reads."""
    return {name: value for name, value in rows.items() if not name.startswith(CACHED_PREFIX)}


# What a model computes of a super-batch: embeddings of pairs, or one loss per example.
Scored = ContrastiveEmbeddings | PointwiseLosses


@dataclass(frozen=True)
class Scores:
    """What the models that score computed of the same rows.

    Args:
        learner ([`ContrastiveEmbeddings`] or [`PointwiseLosses`], *optional*): Computed by the learner, or by the
            proxy that scores in its place; `None` if neither scores.
        reference ([`ContrastiveEmbeddings`] or [`PointwiseLosses`], *optional*): Computed by the reference; `None` if
            the reference does not score.
    """

    learner: Scored | None = None
    reference: Scored | None = None

    @classmethod
    def of(cls, by_model: Mapping[str, Scored]) -> Scores:
        """Return the scores in a dict with the keys `"learner"`, `"reference"` or both."""
        return cls(by_model.get("learner"), by_model.get("reference"))

    def by_model(self) -> dict[str, Scored]:
        """Return the scores that are not `None`, by model, the learner's first."""
        both = {"learner": self.learner, "reference": self.reference}
        return {name: scored for name, scored in both.items() if scored is not None}


def _as_floats(numbers: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Return the values of numbers or tensors of one element. The host waits once for all tensors of one device."""
    for name, value in numbers.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor of one element, got shape {list(value.shape)}.")
    tensors = {name: value.detach().reshape(()) for name, value in numbers.items() if isinstance(value, Tensor)}
    values = {name: value for name, value in numbers.items() if not isinstance(value, Tensor)}
    if len({(value.dtype, value.device) for value in tensors.values()}) == 1:
        values |= dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    else:
        values |= {name: value.item() for name, value in tensors.items()}
    for name, number in values.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {number}.")
    return {name: float(number) for name, number in values.items()}
