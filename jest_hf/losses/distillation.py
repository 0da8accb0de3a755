# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Contrastive distillation: the learner's target on a batch is what a reference thinks of it (ACED, arXiv 2411.18674).

The hard targets of a contrastive loss (an image's own text and no other) give way to the teacher's probabilities, each
model's logits with its own scale and bias. Both losses reach their least value, the entropy of the teacher, where the
learner's probabilities are the teacher's; with a teacher that is sure of the diagonal they are the contrastive losses.

They are computed as those are (see `tiled.py`): a few rows of logits at a time, with gradients found in the same
sweep, over any number of ranks. The teacher gets no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jest_hf.batch import ContrastiveEmbeddings
from jest_hf.distributed import Ranks
from jest_hf.losses.contrastive import choose_exchange, choose_tile_size, prepare
from jest_hf.losses.over_ranks import Gathered, Ring
from jest_hf.losses.tiled import contract, cosine_tiles, log_normalisers, sum_over_ranks, weighted


def sigmoid_distillation_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    *,
    teacher: ContrastiveEmbeddings,
    tile_size: int | None = None,
    ranks: Ranks | None = None,
    exchange: str = "gather",
) -> Tensor:
    r"""
    Binary cross-entropy of each of the `b ** 2` pairs against the teacher's probability that it is a positive one,
    summed over the texts and averaged over the images as in [`sigmoid_contrastive_loss`]:
    `mean_i sum_j -(q_ij log sigmoid(l_ij) + (1 - q_ij) log sigmoid(-l_ij))` with `q` the sigmoid of the teacher's
    logits and `l` the learner's.

    Args:
        image, text, scale, bias:
            The learner's, as in [`sigmoid_contrastive_loss`].
        teacher ([`~jest_hf.selection.ContrastiveEmbeddings`]):
            What the reference says of the same rows, of any width, with its own scale and bias.
        tile_size, ranks, exchange (*optional*):
            As in [`sigmoid_contrastive_loss`], gradients over ranks included. There is the tiled form alone, which can
            be differentiated once.

    Returns:
        `torch.Tensor`: the loss, a float32 scalar (float64 if an input embedding is float64). Gradients have the
        dtypes of the inputs.

    Raises:
        ValueError: as [`sigmoid_contrastive_loss`], and if the teacher has another number of rows.
    """
    return _distil(_sweep_sigmoid, image, text, scale, bias, teacher, tile_size, ranks, exchange)


def softmax_distillation_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    *,
    teacher: ContrastiveEmbeddings,
    tile_size: int | None = None,
    ranks: Ranks | None = None,
    exchange: str = "gather",
) -> Tensor:
    r"""
    Cross-entropy of the learner's distributions over the batch against the teacher's: the mean of that of each image
    over the texts and that of each text over the images.

    Args:
        image, text, scale, bias:
            The learner's, as in [`softmax_contrastive_loss`]; the bias gets a gradient of 0.
        teacher ([`~jest_hf.selection.ContrastiveEmbeddings`]):
            As in [`sigmoid_distillation_loss`]; its bias means nothing here.
        tile_size, ranks, exchange (*optional*):
            As in [`sigmoid_distillation_loss`].

    Returns:
        `torch.Tensor`: as [`sigmoid_distillation_loss`].

    Raises:
        ValueError: as [`sigmoid_distillation_loss`].
    """
    return _distil(_sweep_softmax, image, text, scale, bias, teacher, tile_size, ranks, exchange)


DISTILLATION = {"sigmoid": sigmoid_distillation_loss, "softmax": softmax_distillation_loss}


def _sweep_sigmoid(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    teacher: ContrastiveEmbeddings,
    exchange: Gathered | Ring,
    tile_size: int,
) -> tuple[Tensor, ...]:
    """The loss, and its gradients with respect to image, text, scale and bias."""
    texts = exchange.spread(text)
    losses, bias_gradient = image.new_zeros(len(image)), image.new_zeros(())
    image_gradient, text_gradients = torch.zeros_like(image), torch.zeros_like(texts)
    columns = [texts, exchange.spread(teacher.text)]
    for _, block, teacher_block, text_gradient in exchange.blocks(columns, [text_gradients]):
        for rows, tile, teacher_tile in _tiles(image, block, teacher.image, teacher_block, tile_size):
            logits = tile.mul_(scale).add_(bias)
            targets = teacher_tile.mul_(teacher.logit_scale).add_(teacher.logit_bias).sigmoid_()
            losses[rows] += F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
            g = logits.sigmoid_().sub_(targets)
            bias_gradient += g.sum()
            contract(g, rows, image, block, image_gradient, text_gradient)
    n_pairs = sum(exchange.counts)
    weight = exchange.ranks.size / n_pairs
    gradients = weighted(image, scale, image_gradient, exchange.collect(text_gradients), weight)
    return sum_over_ranks(losses, exchange) / n_pairs, *gradients, weight * bias_gradient


def _sweep_softmax(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor,
    teacher: ContrastiveEmbeddings,
    exchange: Gathered | Ring,
    tile_size: int,
) -> tuple[Tensor, ...]:
    """As [`_sweep_sigmoid`], after one sweep for the normalisers of either model.

    The two cross-entropies of logit l_ij are log-normalisers minus `w_ij l_ij`, w_ij the sum of the teacher's two
    probabilities of the pair; and dloss / dl_ij is the sum of the learner's two minus w_ij.
    """
    texts, teacher_texts = exchange.spread(text), exchange.spread(teacher.text)
    over_texts, over_images, _ = log_normalisers(image, texts, scale, exchange, tile_size)
    by_teacher = log_normalisers(teacher.image, teacher_texts, teacher.logit_scale, exchange, tile_size)
    losses = over_texts + over_images
    image_gradient, text_gradients = torch.zeros_like(image), torch.zeros_like(texts)
    columns = [texts, teacher_texts, exchange.spread(over_images), exchange.spread(by_teacher[1])]
    for _, block, teacher_block, over_block, by_teacher_over, text_gradient in exchange.blocks(
        columns, [text_gradients]
    ):
        for rows, tile, teacher_tile in _tiles(image, block, teacher.image, teacher_block, tile_size):
            logits = tile.mul_(scale)
            weights = _two_probabilities(teacher_tile.mul_(teacher.logit_scale), by_teacher[0][rows], by_teacher_over)
            losses[rows] -= (weights * logits).sum(dim=1)
            g = _two_probabilities(logits, over_texts[rows], over_block).sub_(weights)
            contract(g, rows, image, block, image_gradient, text_gradient)
    n_terms = 2 * sum(exchange.counts)
    weight = exchange.ranks.size / n_terms
    gradients = weighted(image, scale, image_gradient, exchange.collect(text_gradients), weight)
    return sum_over_ranks(losses, exchange) / n_terms, *gradients, torch.zeros_like(bias)


def _tiles(
    image: Tensor, block: Tensor, teacher_image: Tensor, teacher_block: Tensor, tile_size: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of the learner's products with a block of texts and of the teacher's, and which; see [`cosine_tiles`]."""
    learner = cosine_tiles(image, block, tile_size)
    teacher = cosine_tiles(teacher_image, teacher_block, tile_size)
    for (rows, tile), (_, teacher_tile) in zip(learner, teacher, strict=True):
        yield rows, tile, teacher_tile


def _two_probabilities(logits: Tensor, over_texts: Tensor, over_images: Tensor) -> Tensor:
    """Of each image its probabilities over the texts, plus of each text those over the images; overwrites `logits`."""
    g = (logits - over_images).exp_()
    return g.add_(logits.sub_(over_texts[:, None]).exp_())


class _Swept(torch.autograd.Function):
    """`apply(sweep, image, text, scale, bias)`: the loss of a sweep, its gradients kept for backward."""

    @staticmethod
    def forward(ctx: Any, sweep: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Tensor:
        loss, *gradients = sweep(*inputs)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad_output * gradient for gradient in ctx.saved_tensors)


def _distil(
    sweep: Callable[..., tuple[Tensor, ...]],
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None,
    teacher: ContrastiveEmbeddings,
    tile_size: int | None,
    ranks: Ranks | None,
    exchange: str,
) -> Tensor:
    inputs = prepare(image, text, scale, bias)
    if len(teacher) != len(image):
        raise ValueError(f"teacher must embed the same {len(image)} rows, but embeds {len(teacher)}: take them.")
    teacher = replace(teacher, image=teacher.image.to(inputs[0]), text=teacher.text.to(inputs[0]))
    way = choose_exchange(len(image), ranks, exchange, image.device)
    with torch.autocast(image.device.type, enabled=False):
        tile_size = choose_tile_size(way, tile_size) or len(image)
        return _Swept.apply(partial(sweep, teacher=teacher, exchange=way, tile_size=tile_size), *inputs)


__all__ = ["DISTILLATION", "sigmoid_distillation_loss", "softmax_distillation_loss"]
