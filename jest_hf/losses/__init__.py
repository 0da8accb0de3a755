# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses of a dual encoder, as plain functions of its embeddings.

Every loss has the signature `(image, text, scale, bias=None, *, tile_size=None) -> scalar`; [`LOSSES`] finds one by
name.
"""

from __future__ import annotations

from jest_hf.losses.contrastive import LOSSES, sigmoid_contrastive_loss, softmax_contrastive_loss


__all__ = ["LOSSES", "sigmoid_contrastive_loss", "softmax_contrastive_loss"]
