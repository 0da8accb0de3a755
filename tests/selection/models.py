# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings of several kinds to select from."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jest_hf.selection import ContrastiveEmbeddings


def embeddings(kind: str, size: int, width: int, seed: int, scale: float, bias: float | None, dtype=torch.float32):
    """Embeddings of one model: `random`, in tight `clusters`, or in pairs of `near_duplicates`."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(size, width, generator=generator)
    if kind == "clusters":
        centres = torch.randn(8, width, generator=generator)
        image = centres[torch.randint(8, (size,), generator=generator)] + 0.2 * image
    if kind == "near_duplicates":
        image[1::2] = image[: len(image[1::2])] + 1e-3 * image[1::2]
    text = image + torch.randn(size, width, generator=generator)
    return ContrastiveEmbeddings(
        F.normalize(image, dim=1).to(dtype), F.normalize(text, dim=1).to(dtype), torch.tensor(scale), bias
    )


def learner_and_reference(kind: str, size: int, seed: int = 0, dtype=torch.float32):
    """Two models of different width, scale and bias."""
    if kind == "extreme":
        return (
            embeddings("clusters", size, 24, seed, 120.0, -15.0, dtype),
            embeddings("clusters", size, 16, seed + 1, 100.0, -12.0, dtype),
        )
    return (
        embeddings(kind, size, 24, seed, 10.0, -10.0, dtype),
        embeddings(kind, size, 16, seed + 1, 14.0, None, dtype),
    )
