# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What travels between the parts of a step: the names of a super-batch's keys, and what a model computes of it.

A model computes pairs of embeddings ([`ContrastiveEmbeddings`]) or one loss for each example ([`PointwiseLosses`]).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


REF_PREFIX = "ref_"
IMAGE_KEYS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
TEXT_KEYS = ("input_ids", "attention_mask")
VIEW_PREFIX = "view_"


@dataclass(frozen=True)
class ContrastiveEmbeddings:
    """Image and text embeddings of one batch under one model.

    The logit of image i and text j is ``logit_scale * image[i] @ text[j] + logit_bias`` (arXiv 2303.15343, section 3).

    Args:
        image (`torch.Tensor`): L2-normalised image embeddings, `[B, D]`, any floating dtype.
        text (`torch.Tensor`): L2-normalised text embeddings, `[B, D]`; row i is the caption of image i.
        logit_scale (`float` or `torch.Tensor`): The multiplier itself, not its logarithm. A tensor has one element.
        logit_bias (`float` or `torch.Tensor`, *optional*): Added to every logit; `None` (CLIP has none) means 0.

    The scale and bias are kept as plain floats: selection needs no gradient through them.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or the scale or bias is not one finite number.
    """

    image: Tensor
    text: Tensor
    logit_scale: float
    logit_bias: float | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 2 or self.image.shape != self.text.shape:
            raise ValueError(
                "image and text embeddings must both be [B, D] with the same B and D, got "
                f"{list(self.image.shape)} and {list(self.text.shape)}."
            )
        if not (self.image.is_floating_point() and self.text.is_floating_point()):
            raise ValueError(f"embeddings must be floating point, got {self.image.dtype} and {self.text.dtype}.")
        if self.image.device != self.text.device:
            raise ValueError(
                "image and text embeddings must be on one device, got "
                f"{self.image.device} and {self.text.device}: move one of them."
            )
        object.__setattr__(self, "logit_scale", _as_float("logit_scale", self.logit_scale))
        bias = 0.0 if self.logit_bias is None else self.logit_bias
        object.__setattr__(self, "logit_bias", _as_float("logit_bias", bias))

    def __len__(self) -> int:
        return self.image.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.image.device

    def take(self, indices: Tensor) -> ContrastiveEmbeddings:
        """Return the embeddings of the examples at `indices` (int64 `[n]`), in that order."""
        return ContrastiveEmbeddings(self.image[indices], self.text[indices], self.logit_scale, self.logit_bias)

    def to(self, device: torch.device | str) -> ContrastiveEmbeddings:
        """Return the same embeddings on `device`."""
        return ContrastiveEmbeddings(self.image.to(device), self.text.to(device), self.logit_scale, self.logit_bias)

    def columns(self) -> dict[str, Tensor]:
        """Return what is known of each example, as tensors of B rows: `image` and `text`."""
        return {"image": self.image, "text": self.text}

    def with_columns(self, columns: Mapping[str, Tensor]) -> ContrastiveEmbeddings:
        """Return what the same model says of other examples: those of which `columns` holds the rows."""
        return replace(self, **columns)


@dataclass(frozen=True)
class PointwiseLosses:
    """Losses of the examples of one batch under one model: of a classifier, a language model, or any with labels.

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
        """Where the losses are."""
        return self.losses.device

    def take(self, indices: Tensor) -> PointwiseLosses:
        """Return the losses of the examples at `indices` (int64 `[n]`), in that order."""
        return PointwiseLosses(self.losses[indices])

    def to(self, device: torch.device | str) -> PointwiseLosses:
        """Return the same losses on `device`."""
        return PointwiseLosses(self.losses.to(device))

    def columns(self) -> dict[str, Tensor]:
        """Return what is known of each example, as tensors of B rows: `losses`."""
        return {"losses": self.losses}

    def with_columns(self, columns: Mapping[str, Tensor]) -> PointwiseLosses:
        """Return what the same model says of other examples: those of which `columns` holds the rows."""
        return PointwiseLosses(**columns)


# What a model has to say about a super-batch: about the pairs of its examples, or about each alone.
Scored = ContrastiveEmbeddings | PointwiseLosses


@dataclass(frozen=True)
class Scores:
    """
    What the models that score have computed of the same rows.

    Args:
        learner ([`ContrastiveEmbeddings`] or [`PointwiseLosses`], *optional*): Of the learner, or of the proxy that
            scores in its place; `None` if neither scores.
        reference ([`ContrastiveEmbeddings`] or [`PointwiseLosses`], *optional*): Of the reference; `None` if it does
            not score.
    """

    learner: Scored | None = None
    reference: Scored | None = None

    @classmethod
    def of(cls, by_model: Mapping[str, Scored]) -> Scores:
        """Return the scores in a dict with the keys `"learner"`, `"reference"` or both."""
        return cls(by_model.get("learner"), by_model.get("reference"))

    def by_model(self) -> dict[str, Scored]:
        """Return the scores that there are, by model, the learner's first."""
        both = {"learner": self.learner, "reference": self.reference}
        return {name: scored for name, scored in both.items() if scored is not None}


def _as_float(name: str, value: float | Tensor) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor of one element, got shape {list(value.shape)}.")
        value = value.detach().item()
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")
    return float(value)
