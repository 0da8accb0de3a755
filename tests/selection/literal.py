# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 of JEST written out: whole [B, B] float64 matrices, every sum computed anew over all drawn examples.

Slow and obvious on purpose: the fast implementation must return the same indices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jest_hf.selection import ContrastiveEmbeddings


def logits(embeddings: ContrastiveEmbeddings) -> Tensor:
    """Row i holds image i against every text."""
    product = embeddings.image.double() @ embeddings.text.double().T
    return embeddings.logit_scale * product + embeddings.logit_bias


class SigmoidLoss:
    def __init__(self, embeddings: ContrastiveEmbeddings) -> None:
        matrix = logits(embeddings)
        sign = 2 * torch.eye(len(matrix), dtype=matrix.dtype) - 1
        self.pairs = F.softplus(-sign * matrix)

    def positive(self) -> Tensor:
        return self.pairs.diagonal()

    def conditional(self, drawn: Tensor) -> Tensor:
        return self.pairs[drawn].sum(dim=0) + self.pairs[:, drawn].sum(dim=1)


class SoftmaxLoss:
    def __init__(self, embeddings: ContrastiveEmbeddings) -> None:
        self.logits = logits(embeddings)

    def positive(self) -> Tensor:
        return -self.logits.diagonal()

    def conditional(self, drawn: Tensor) -> Tensor:
        return (self.logits[:, drawn].logsumexp(dim=1) + self.logits[drawn].logsumexp(dim=0)) / 2


class Similarity:
    """The loss of ActiveCLIP, without temperature and without other pairs."""

    def __init__(self, embeddings: ContrastiveEmbeddings) -> None:
        self.products = embeddings.image.double() @ embeddings.text.double().T

    def positive(self) -> Tensor:
        return -self.products.diagonal()

    def conditional(self, drawn: Tensor) -> Tensor:
        return torch.zeros(len(self.products), dtype=torch.float64)


class Matrix:
    def __init__(self, matrix: Tensor) -> None:
        self.pairs = matrix.double()

    def positive(self) -> Tensor:
        return self.pairs.diagonal()

    def conditional(self, drawn: Tensor) -> Tensor:
        return self.pairs[drawn].sum(dim=0) + self.pairs[:, drawn].sum(dim=1)


LOSSES = {"sigmoid": SigmoidLoss, "softmax": SoftmaxLoss, "similarity": Similarity}


def signed_losses(learner, reference, criterion: str, loss: str) -> list[tuple[int, object]]:
    if criterion == "learnability":
        return [(1, LOSSES[loss](learner)), (-1, LOSSES[loss](reference))]
    if criterion == "easy_reference":
        return [(-1, LOSSES[loss](reference))]
    return [(1, LOSSES[loss](learner))]


def select_jointly(
    losses: list[tuple[int, object]],
    size: int,
    n_chunks: int,
    noise: Tensor,
    gain: float = 1.0,
    given: tuple[int, ...] = (),
) -> list[int]:
    """Draw `size` examples after those that are `given`, and return these first."""
    d = sum(sign * loss.positive() for sign, loss in losses)
    drawn = list(given)
    for chunk in range(n_chunks):
        chunk_size = size // n_chunks + (1 if chunk < size % n_chunks else 0)
        if size < n_chunks:
            chunk_size = 1 if chunk < size else 0
        log_weights = d
        if drawn:
            log_weights = d + sum(sign * loss.conditional(torch.tensor(drawn)) for sign, loss in losses)
        keys = (gain * log_weights + noise[chunk]).tolist()
        left = set(range(len(d))) - set(drawn)
        order = sorted(left, key=lambda i: (-keys[i], i))
        drawn += order[:chunk_size]
    return drawn
