# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The contrastive losses by row tiles: memory of `tile_size * b + b * D`, not `b * b`, in forward and backward.

Checkpointing the tiles would bound memory too, but would compute every logit twice. The loss is a scalar, so its
gradients can be computed in the forward, up to the factor that backward receives. Hence:

1. compute the logits `tile_size` rows (images) at a time; each tile gives its part of the loss and
   `g = dloss / dlogits`;
2. contract `g` with the embeddings at once, and drop the tile: `g @ text` adds to the image gradients of the rows,
   `g.T @ image` to the text gradients;
3. save only these `[b, D]` gradients; backward multiplies them by the incoming scalar.

The terms of the sigmoid loss are independent of each other, so one sweep over the tiles is enough. A softmax needs its
normalisers first: one sweep for the two logsumexps (running values, over the rows and over the columns), a second one
for the gradients.

Over W ranks, rows are the images of this rank and columns the texts of all ranks, in the blocks of `over_ranks.py`;
with one rank there is a single block. The loss is that of the global batch, and every gradient is W times this rank's
part, so that the average over ranks, which training engines take, is the gradient of the loss.

All inputs are float32 or float64 matrices and 0-d scalars of one dtype; see `contrastive.prepare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jest_hf.losses.over_ranks import Gathered, Ring


def sweep_sigmoid(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    exchange: Gathered | Ring,
    tile_size: int,
    gradients: bool,
) -> tuple[Tensor, ...]:
    """Return the sigmoid loss; with `gradients`, also the gradients of image, text, scale and bias. A collective."""
    texts = exchange.spread(text)
    losses = image.new_zeros(len(image))
    image_gradient = torch.zeros_like(image if gradients else image[:0])
    text_gradients = [torch.zeros_like(texts)] if gradients else []
    bias_gradient = image.new_zeros(())
    for first, block, *written in exchange.blocks([texts], text_gradients):
        for rows, tile in cosine_tiles(image, block, tile_size):
            tile.mul_(scale).add_(bias)
            positives = tile.diagonal(first + rows.start)
            positives.neg_()  # the tile is now -y * logit: the loss is its softplus, the slope of the loss its sigmoid
            losses[rows] += F.softplus(tile, threshold=40).sum(dim=1)
            if gradients:
                tile.sigmoid_()
                positives.neg_()
                bias_gradient += tile.sum()
                contract(tile, rows, image, block, image_gradient, *written)
    n_pairs = sum(exchange.counts)
    loss = sum_over_ranks(losses, exchange) / n_pairs
    if not gradients:
        return (loss,)
    (spread_gradient,) = text_gradients
    text_gradient = exchange.collect(spread_gradient)
    weight = exchange.ranks.size / n_pairs
    return loss, *weighted(image, scale, image_gradient, text_gradient, weight), weight * bias_gradient


def sweep_softmax(
    image: Tensor, text: Tensor, scale: Tensor, exchange: Gathered | Ring, tile_size: int, gradients: bool
) -> tuple[Tensor, ...]:
    """Return the softmax loss; with `gradients`, also the gradients of image, text and scale. A collective."""
    texts = exchange.spread(text)
    over_texts, over_images, positives = log_normalisers(image, texts, scale, exchange, tile_size)
    n_terms = 2 * sum(exchange.counts)
    loss = sum_over_ranks(over_texts + over_images - 2 * positives, exchange) / n_terms
    if not gradients:
        return (loss,)

    image_gradient, text_gradients = torch.zeros_like(image), torch.zeros_like(texts)
    columns = [texts, exchange.spread(over_images)]
    for first, block, over_images, text_gradient in exchange.blocks(columns, [text_gradients]):
        for rows, tile in cosine_tiles(image, block, tile_size):
            tile.mul_(scale)
            g = (tile - over_images).exp_()
            g += tile.sub_(over_texts[rows, None]).exp_()
            g.diagonal(first + rows.start).sub_(2)
            contract(g, rows, image, block, image_gradient, text_gradient)
    text_gradient = exchange.collect(text_gradients)
    return loss, *weighted(image, scale, image_gradient, text_gradient, exchange.ranks.size / n_terms)


class TiledSigmoid(torch.autograd.Function):
    """`apply(image, text, scale, bias, exchange, tile_size)`: [`sweep_sigmoid`], gradients saved for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        exchange: Gathered | Ring,
        tile_size: int,
    ) -> Tensor:
        loss, *gradients = sweep_sigmoid(image, text, scale, bias, exchange, tile_size, gradients=True)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad_output * gradient for gradient in ctx.saved_tensors), None, None


class TiledSoftmax(torch.autograd.Function):
    """`apply(image, text, scale, exchange, tile_size)`: [`sweep_softmax`] with its gradients saved for backward."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, exchange: Gathered | Ring, tile_size: int
    ) -> Tensor:
        loss, *gradients = sweep_softmax(image, text, scale, exchange, tile_size, gradients=True)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad_output * gradient for gradient in ctx.saved_tensors), None, None


def log_normalisers(
    image: Tensor, texts: Tensor, scale: Tensor | float, exchange: Gathered | Ring, tile_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return three values per pair of this rank, each `[b_r]`. A collective; `texts` is in spread form.

    They are the logsumexp of the image's logits over all texts, that of the text's logits over all images, and the
    logit of the pair.
    """
    over_texts = image.new_full((len(image),), -torch.inf)
    over_images = texts.new_full((len(texts),), -torch.inf)
    positives = torch.empty_like(over_texts)
    for first, block, over_block in exchange.blocks([texts], [over_images]):
        for rows, tile in cosine_tiles(image, block, tile_size):
            tile.mul_(scale)
            if first < len(block):
                positives[rows] = tile.diagonal(first + rows.start)
            over_texts[rows] = torch.logaddexp(over_texts[rows], tile.logsumexp(dim=1))
            torch.logaddexp(over_block, tile.logsumexp(dim=0), out=over_block)
    return over_texts, exchange.collect(over_images, torch.logsumexp), positives


def cosine_tiles(image: Tensor, text: Tensor, tile_size: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield tiles of `image @ text.T`, each with its rows. All tiles share one buffer: overwrite them, do not keep
    them.

    If `first` is the column of the first row's positive, the positives of a tile are
    `tile.diagonal(first + rows.start)`; a diagonal that begins beyond the last column is empty.
    """
    n = len(image)
    buffer = image.new_empty(min(tile_size, n), len(text))
    for start in range(0, n, tile_size):
        rows = slice(start, min(start + tile_size, n))
        yield rows, torch.mm(image[rows], text.T, out=buffer[: rows.stop - start])


def contract(
    g: Tensor, rows: slice, image: Tensor, text: Tensor, image_gradient: Tensor, text_gradient: Tensor
) -> None:
    """Add the part of one tile, `g = dloss / dlogits`, to the gradients; [`weighted`] multiplies them by `scale`."""
    image_gradient[rows].addmm_(g, text)
    text_gradient.addmm_(g.T, image[rows])


def weighted(
    image: Tensor, scale: Tensor, image_gradient: Tensor, text_gradient: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of image, text and scale for `weight` times the sum that was differentiated.

    The gradient of the scale, `sum_ij g_ij z_i . z_j`, is the inner product of the images with `g @ text`, which is
    `image_gradient`.
    """
    scale_gradient = weight * (image * image_gradient).sum()
    return image_gradient.mul_(weight * scale), text_gradient.mul_(weight * scale), scale_gradient


def sum_over_ranks(values: Tensor, exchange: Gathered | Ring) -> Tensor:
    """Return the sum of the `values` of all ranks, bit-equal on all ranks. A collective."""
    return exchange.ranks.gather(values.sum()).sum()
