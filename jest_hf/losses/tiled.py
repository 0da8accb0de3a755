# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The contrastive losses by row tiles: memory of `tile_size * b + b * D`, not `b * b`, in forward and backward.

Checkpointing the tiles would bound memory too, but computes every logit twice. The loss is a scalar, so its gradients
are known before backward begins, up to one factor. Hence:

1. go over the logits `tile_size` rows (images) at a time; each tile gives its part of the loss and
   `g = dloss / dlogits`;
2. contract `g` with the embeddings at once: `g @ text` are the rows' image gradients, `g.T @ image` adds to the text
   gradients, and the tile is dropped;
3. save only these `[b, D]` gradients; backward multiplies them by the incoming scalar.

The sigmoid's terms know nothing of each other, so one sweep does. A softmax needs its normalisers first: one sweep for
the two logsumexps (over the rows at once, over the columns as a running value), a second for the gradients.

Inputs are float32 or float64 matrices and 0-d scalars of one dtype; `contrastive.py` sees to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def sweep_sigmoid(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, tile_size: int, gradients: bool
) -> tuple[Tensor, ...]:
    """Sigmoid loss in one sweep; with `gradients`, followed by those of image, text, scale and bias."""
    b = len(image)
    losses = image.new_empty(b)
    accumulator = _Gradients(image, text) if gradients else None
    for rows, tile in _cosine_tiles(image, text, tile_size):
        tile.mul_(scale).add_(bias)
        _positives(tile, rows).neg_()  # now -y * logit, of which the loss is the softplus and its slope the sigmoid
        losses[rows] = F.softplus(tile, threshold=40).sum(dim=1)
        if accumulator is not None:
            tile.sigmoid_()
            _positives(tile, rows).neg_()
            accumulator.add(tile, rows)
    loss = losses.mean()
    if accumulator is None:
        return (loss,)
    return loss, *accumulator.result(scale, 1 / b), accumulator.logits / b


def sweep_softmax(image: Tensor, text: Tensor, scale: Tensor, tile_size: int, gradients: bool) -> tuple[Tensor, ...]:
    """Softmax loss in one sweep; with `gradients`, a second sweep gives those of image, text and scale."""
    over_texts, over_images, positives = _log_normalisers(image, text, scale, tile_size)
    loss = (over_texts + over_images - 2 * positives).mean() / 2
    if not gradients:
        return (loss,)

    accumulator = _Gradients(image, text)
    for rows, tile in _cosine_tiles(image, text, tile_size):
        tile.mul_(scale)
        g = (tile - over_images).exp_()
        g += tile.sub_(over_texts[rows, None]).exp_()
        _positives(g, rows).sub_(2)
        accumulator.add(g, rows)
    return loss, *accumulator.result(scale, 1 / (2 * len(image)))


class TiledSigmoid(torch.autograd.Function):
    """`apply(image, text, scale, bias, tile_size)`: [`sweep_sigmoid`] with its gradients kept for backward."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, tile_size: int) -> Tensor:
        loss, *gradients = sweep_sigmoid(image, text, scale, bias, tile_size, gradients=True)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad_output * gradient for gradient in ctx.saved_tensors), None


class TiledSoftmax(torch.autograd.Function):
    """`apply(image, text, scale, tile_size)`: [`sweep_softmax`] with its gradients kept for backward."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, tile_size: int) -> Tensor:
        loss, *gradients = sweep_softmax(image, text, scale, tile_size, gradients=True)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad_output * gradient for gradient in ctx.saved_tensors), None


class _Gradients:
    """Sums over tiles of `g = dloss / dlogits`, contracted with the embeddings.

    The gradient of the scale needs no product with the cosines: `sum_ij g_ij z_i . z_j` is the inner product of the
    images with `g @ text`, which is at hand.
    """

    def __init__(self, image: Tensor, text: Tensor):
        self.inputs = image, text
        self.image = torch.empty_like(image)
        self.text = torch.zeros_like(text)
        self.logits = image.new_zeros(())

    def add(self, g: Tensor, rows: slice) -> None:
        image, text = self.inputs
        torch.mm(g, text, out=self.image[rows])
        self.text.addmm_(g.T, image[rows])
        self.logits += g.sum()

    def result(self, scale: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of image, text and scale for a loss of `weight` times the sum that was differentiated."""
        scale_gradient = weight * (self.inputs[0] * self.image).sum()
        return self.image.mul_(weight * scale), self.text.mul_(weight * scale), scale_gradient


def _log_normalisers(image: Tensor, text: Tensor, scale: Tensor, tile_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per pair: logsumexp of the image's logits over all texts, of the text's over all images, and its own logit."""
    b = len(image)
    over_texts = image.new_empty(b)
    over_images = image.new_full((b,), -torch.inf)
    positives = image.new_empty(b)
    for rows, tile in _cosine_tiles(image, text, tile_size):
        tile.mul_(scale)
        positives[rows] = _positives(tile, rows)
        over_texts[rows] = tile.logsumexp(dim=1)
        over_images = torch.logaddexp(over_images, tile.logsumexp(dim=0))
    return over_texts, over_images, positives


def _cosine_tiles(image: Tensor, text: Tensor, tile_size: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of `image @ text.T`, and which. All tiles share one buffer: each may be overwritten, none may be kept."""
    b = len(image)
    buffer = image.new_empty(min(tile_size, b), b)
    for start in range(0, b, tile_size):
        rows = slice(start, min(start + tile_size, b))
        yield rows, torch.mm(image[rows], text.T, out=buffer[: rows.stop - start])


def _positives(tile: Tensor, rows: slice) -> Tensor:
    """View of the entries (i, i) in the rows `rows` of a `[b, b]` matrix."""
    return tile.diagonal(offset=rows.start)
