# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses of a dual encoder, as plain functions of its embeddings.

Every loss has the signature `(image, text, scale, bias=None, *, tile_size=None, ranks=None, exchange="gather") ->
scalar`; [`LOSSES`] maps names to losses. Those of [`DISTILLATION`] also take a teacher, whose probabilities of the
pairs are the targets. [`backward_in_chunks`] back-propagates a loss through a batch that is larger than memory.
[`per_example_losses`] and [`mean_over_ranks`] are for examples that stand alone.
"""

from __future__ import annotations

from jest_hf.losses.contrastive import LOSSES, sigmoid_contrastive_loss, softmax_contrastive_loss
from jest_hf.losses.distillation import DISTILLATION, sigmoid_distillation_loss, softmax_distillation_loss
from jest_hf.losses.gradient_cache import backward_in_chunks
from jest_hf.losses.pointwise import mean_over_ranks, per_example_losses


__all__ = [
    "DISTILLATION",
    "LOSSES",
    "backward_in_chunks",
    "mean_over_ranks",
    "per_example_losses",
    "sigmoid_contrastive_loss",
    "sigmoid_distillation_loss",
    "softmax_contrastive_loss",
    "softmax_distillation_loss",
]
