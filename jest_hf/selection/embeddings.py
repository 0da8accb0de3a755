# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a dual encoder says about a batch: embeddings, and the scale and bias that turn their products into logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


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


def _as_float(name: str, value: float | Tensor) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a number or a tensor of one element, got shape {list(value.shape)}.")
        value = value.detach().item()
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")
    return float(value)


__all__ = ["ContrastiveEmbeddings"]
