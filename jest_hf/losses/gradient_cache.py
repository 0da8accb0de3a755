# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Gradient caching (Gao et al., arXiv 2101.06983): gradients of a batch whose activations do not fit into memory.

A contrastive loss needs the embeddings of the whole batch at once, but not the activations of the model. Hence, for a
batch cut into chunks:

1. embed every chunk without gradients, and save the state of the random number generators before each;
2. compute the loss over all embeddings, and its gradients with respect to the embeddings and the temperature (the
   cache);
3. embed every chunk again, with the same random numbers (dropout) and with gradients, and back-propagate the inner
   product of the chunk's embeddings and their cached gradients, whose gradient is the chunk's part of the gradient of
   the loss.

The result is the gradient of the whole batch, at the cost of one more forward. The activations of only one chunk exist
at a time. A model with statistics over the batch (batch norm) computes them over a chunk, twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor


class Embedded(Protocol):
    """The output of a dual encoder's forward; see [`~jest_hf.models.DualEncoderOutput`]."""

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
    """Add the gradients of `loss` over `n_rows` rows to the parameters, one chunk's activations at a time.

    Args:
        forward (`Callable`):
            `forward(rows)` embeds these rows with the (wrapped) model, in training mode. Called twice for every chunk,
            the first time under `torch.no_grad`.
        n_rows (`int`):
            Number of rows of this rank.
        chunks (`int` or sequence of `slice`):
            Number of chunks, whose sizes then differ by at most one; or the chunks themselves, in order. The number
            must be the same on every rank, even if `n_rows` differs: under DDP, FSDP and ZeRO-3 a forward is a
            collective.
        loss (`Callable`):
            `loss(image, text, scale, bias)` of all rows, a scalar; with several ranks, a [`sigmoid_contrastive_loss`]
            or [`softmax_contrastive_loss`] with `ranks=`. `image` and `text` are float32 (float64 for float64
            embeddings), and `bias` is `None` for a model without one.
        backward (`Callable`, *optional*):
            Back-propagates one scalar, once per chunk, such as `accelerator.backward`. May multiply by a constant
            (gradient scaling). The scalar is not the loss: only its gradient has a meaning.
        no_sync (`Callable`, *optional*):
            Returns a context in which gradients are not averaged over ranks, such as DDP's `model.no_sync`. Entered
            for each chunk but the last, around both forward and backward. By default the gradients of every chunk are
            averaged and added up, which gives the same values, and under FSDP saves the memory of unsharded gradients.

    Returns:
        `torch.Tensor`: the loss, a scalar without a graph.

    Raises:
        ValueError: if there are no chunks, or more than `n_rows`, or if `loss` does not use all of its arguments.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.losses import backward_in_chunks, sigmoid_contrastive_loss
    >>> from jest_hf.models import DualEncoderOutput
    >>> layer, images, texts = torch.nn.Linear(8, 4), torch.randn(6, 8), torch.eye(6)[:, :4]
    >>> scale, bias = torch.tensor([10.0], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    >>> def forward(rows):
    ...     return DualEncoderOutput.of(layer(images[rows]), texts[rows], 1 * scale, 1 * bias)
    >>> loss = backward_in_chunks(forward, n_rows=6, chunks=3, loss=sigmoid_contrastive_loss)
    >>> layer.weight.grad.shape, scale.grad.shape
    (torch.Size([4, 8]), torch.Size([1]))

    ```
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
    # Older versions of torch keep the copies of the weights that autocast made above, which have no graph, for the
    # second forward, and the weights would get no gradient (pytorch issue 112583).
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
            # The gradient of the temperature is added with the last chunk, but the temperature is a part of every one:
            # DDP needs all parameters in the backward that averages, and ZeRO-3 in the first backward of a step.
            backward(surrogate(rows, weight=int(last)))
    return value.detach()


def _leaf(value: Tensor) -> Tensor:
    """Return `value` outside any graph, in float32 or better: float16 would lose small gradients of the cache."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32)).requires_grad_()


def _gradient(name: str, leaf: Tensor) -> Tensor:
    """Return the gradient of a leaf, or raise a `ValueError` if the loss does not depend on it."""
    if leaf.grad is None:
        raise ValueError(f"loss does not depend on {name}, so {name} has no gradient: add 0.0 * {name}.sum() to it.")
    return leaf.grad


def _inner(value: Tensor, gradient: Tensor) -> Tensor:
    return (value.to(gradient.dtype) * gradient).sum()


def _random_state() -> tuple[Tensor, Tensor | None]:
    """Return the states of the generators that dropout uses: of the CPU, and of the current GPU if one is in use."""
    cuda_in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch has no annotation
    return torch.get_rng_state(), torch.cuda.get_rng_state() if cuda_in_use else None


def _restore_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)


__all__ = ["backward_in_chunks"]
