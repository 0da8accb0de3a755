# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a model says about a batch whose examples stand alone: a loss each (arXiv 2206.07137, 2312.05328)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jest_hf.selection.embeddings import ContrastiveEmbeddings


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


__all__ = ["PointwiseLosses", "Scored"]
