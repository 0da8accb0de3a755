# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Gradient caching (Gao et al., arXiv 2101.06983): contrastive gradients of a batch whose activations do not fit.

A contrastive loss needs the embeddings of the whole batch at once, but not the activations that led to them. Hence,
for a batch cut into chunks:

1. embed every chunk without gradients, noting the state of the random number generators before each;
2. take the loss over all embeddings, and its gradients with respect to them and to the temperature: the cache;
3. embed every chunk again, with the same random numbers (dropout) and with gradients, and back-propagate the inner
   product of its embeddings and their cached gradients: its gradient is the chunk's part of the loss's.

The result is the gradient of the whole batch, for the price of one more forward. Only one chunk's activations are
alive at a time. A model with statistics over the batch (batch norm) sees the chunk in place of the batch, twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor


class Embedded(Protocol):
    """What a dual encoder's forward returns, of which these four are used; see [`DualEncoderOutput`]."""

    image_embeds: Tensor
    text_embeds: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None


def backward_in_chunks(
    forward: Callable[[slice], Embedded],
    n_rows: int,
    chunks: int | Sequence[slice],
    loss: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    backward: Callable[[Tensor], None] = Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """
    Add the gradients of `loss` over `n_rows` rows to the parameters, one chunk's activations at a time.

    Args:
        forward (`Callable`):
            `forward(rows)` embeds these rows with the (wrapped) model, in the mode in which it is to be trained. It is
            called twice for every chunk, first under `torch.no_grad`.
        n_rows (`int`):
            Rows of this rank.
        chunks (`int` or sequence of `slice`):
            Number of chunks, whose sizes then differ by one at most; or the chunks themselves, in order. There must be
            as many on every rank, also where the ranks' `n_rows` differ: under DDP, FSDP and ZeRO-3 a forward is a
            collective.
        loss (`Callable`):
            `loss(image, text, scale, bias)` of all rows, a scalar; over ranks, a [`sigmoid_contrastive_loss`] or
            [`softmax_contrastive_loss`] with its `ranks`. `image` and `text` are float32 (float64 for float64
            embeddings), and `bias` is `None` for a model without one.
        backward (`Callable`, *optional*):
            Back-propagates one scalar, once per chunk: `accelerator.backward` or an engine's own. A constant factor in
            it (gradient scaling) is harmless. The scalar's value means nothing.
        no_sync (`Callable`, *optional*):
            Gives a context in which gradients are not averaged over ranks: DDP's `model.no_sync`. Entered for each
            chunk but the last, around both forward and backward. Without it every chunk's gradients are averaged and
            added up, which is equal in value, and under FSDP saves the memory of unsharded gradients.

    Returns:
        `torch.Tensor`: the loss, a scalar without a graph.

    Raises:
        ValueError: if there are no chunks, or more than `n_rows`, or if `loss` does not use all of its arguments.
    """
    n_chunks = chunks if isinstance(chunks, int) else len(chunks)
    if not 1 <= n_chunks <= n_rows:
        raise ValueError(f"n_chunks={n_chunks} must lie between 1 and this rank's {n_rows} rows: change it.")
    if isinstance(chunks, int):
        ends = [n_rows * k // n_chunks for k in range(n_chunks + 1)]
        chunks = [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]

    states, images, texts = [], [], []
    with torch.no_grad():
        for rows in chunks:
            states.append(_random_state())
            output = forward(rows)
            images.append(output.image_embeds)
            texts.append(output.text_embeds)
    # Older versions of torch keep autocast's copies of the weights made above, which have no graph, for the second
    # forward: the weights would get no gradient (pytorch issue 112583).
    torch.clear_autocast_cache()

    image, text, scale = _leaf(torch.cat(images)), _leaf(torch.cat(texts)), _leaf(output.logit_scale)
    bias = None if output.logit_bias is None else _leaf(output.logit_bias)
    value = loss(image, text, scale, bias)
    torch.autograd.backward(value)
    image_gradient, text_gradient = _gradient("image", image), _gradient("text", text)
    scale_gradient, bias_gradient = _gradient("scale", scale), None if bias is None else _gradient("bias", bias)

    def surrogate(rows: slice, weight: int) -> Tensor:
        output = forward(rows)
        total = _inner(output.image_embeds, image_gradient[rows]) + _inner(output.text_embeds, text_gradient[rows])
        total = total + weight * _inner(output.logit_scale, scale_gradient)
        if output.logit_bias is None or bias_gradient is None:
            return total
        return total + weight * _inner(output.logit_bias, bias_gradient)

    for rows, state in zip(chunks, states, strict=True):
        last = rows == chunks[-1]
        # Around the forward too: that is where DDP decides whether the backward averages.
        with nullcontext() if last else no_sync():
            _restore_random_state(state)
            # The temperature's gradient comes with the last chunk, but it is a part of every one: DDP wants all
            # parameters used in the backward that averages, and ZeRO-3 in the first, where it clears the step before.
            backward(surrogate(rows, weight=int(last)))
    return value.detach()


def _leaf(value: Tensor) -> Tensor:
    """`value` outside any graph, in at least float32: the cache must not lose small gradients to float16."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32)).requires_grad_()


def _gradient(name: str, leaf: Tensor) -> Tensor:
    """The gradient of the loss with respect to a leaf, which every loss must have."""
    if leaf.grad is None:
        raise ValueError(f"loss does not depend on {name}, so {name} has no gradient: add 0.0 * {name}.sum() to it.")
    return leaf.grad


def _inner(value: Tensor, gradient: Tensor) -> Tensor:
    return (value.to(gradient.dtype) * gradient).sum()


def _random_state() -> tuple[Tensor, Tensor | None]:
    """States of the generators that dropout draws from: of the CPU, and of the current GPU if one is in use."""
    cuda_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no annotation
    return torch.get_rng_state(), torch.cuda.get_rng_state() if cuda_in_use else None


def _restore_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)


__all__ = ["backward_in_chunks"]
