# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Sigmoid (SigLIP) and softmax (CLIP) contrastive losses over one batch of `b` image-text pairs.

With L2-normalised embeddings `z`, a multiplier `s` and a bias `c`, the logit of image i and text j is
`s * z_img_i . z_txt_j + c`, and the pair (i, i) is the positive one. Both losses exist in two forms with equal values:

- dense: the `[b, b]` logits are one tensor, with ordinary autograd; differentiable any number of times;
- tiled: a few rows of logits at a time, in forward and backward, so that memory grows with `b`, not `b ** 2`
  (see `tiled.py`).

With several processes the loss is always tiled: each rank passes its own pairs and gets the loss of the global batch
(see `over_ranks.py`).

Arithmetic is float32 (float64 for float64 embeddings) for embeddings of any dtype, also under autocast: at a scale of
100 or more, a bfloat16 logit would be rounded to a multiple of one half.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jest_hf.distributed import Ranks
from jest_hf.losses.over_ranks import EXCHANGES, Gathered, Ring
from jest_hf.losses.tiled import TiledSigmoid, TiledSoftmax, sweep_sigmoid, sweep_softmax


# The largest batch with the dense form by default. A tile of a larger batch has at most as many elements: 4 M, or 16
# MB in float32. About four tensors of this size exist at a time.
DENSE_LIMIT = 2048


def sigmoid_contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    *,
    tile_size: int | None = None,
    ranks: Ranks | None = None,
    exchange: str = "gather",
) -> Tensor:
    r"""Sigmoid loss of SigLIP (arXiv 2303.15343, section 3.2): each of the `b ** 2` pairs is a binary classification.

    The terms of an image are summed over its positive and all its negatives, and the sums are averaged over the
    images: `mean_i sum_j -log sigmoid(y_ij * (s * z_img_i . z_txt_j + c))`, with `y = +1` on the diagonal and `-1`
        elsewhere.

    Args:
        image (`torch.Tensor` of shape `[b, D]`):
            L2-normalised image embeddings, any floating dtype.
        text (`torch.Tensor` of shape `[b, D]`):
            L2-normalised text embeddings; row i belongs to row i of `image`.
        scale (`torch.Tensor` of one element or `float`):
            Multiplier `s` of the cosines: `logit_scale.exp()`, not its logarithm.
        bias (`torch.Tensor` of one element or `float`, *optional*):
            Bias `c` added to every logit; none counts as 0.
        tile_size (`int`, *optional*):
            Number of rows of logits that exist at a time. By default all rows up to `b = 2048` (the dense form), and
            above that as many as make a tile of at most 2048 x 2048 elements. With a number, or with several ranks,
            the loss is always tiled, and can be differentiated only once.
        ranks ([`Ranks`], *optional*):
            The processes that share the batch (a collective). `image` and `text` are then this rank's pairs,
            `[b_r, D]` (`b_r` may differ between ranks, and is at least 1), and b is the number of pairs over all
            ranks. The loss is that of the global batch, the same on every rank. A rank back-propagates W times its
            part of the gradient, so that the *average* of the ranks' parameter gradients, which DDP, ZeRO and FSDP
            take, is exactly the gradient of the global loss. All ranks must call backward with the same factor.
        exchange (`str`, *optional*, defaults to `"gather"`):
            How a rank gets the texts of other ranks. `"gather"`: all texts at once, `[b, D]` on every rank, and tiles
            of `tile_size * b`. `"ring"`: the texts of one rank at a time, so that a rank holds no tensor larger than a
            share, besides a tile of `tile_size * b / W`.

    Returns:
        `torch.Tensor`: the loss, a float32 scalar (float64 if an input embedding is float64). Gradients have the
        dtypes of the inputs.

    Raises:
        ValueError: if the embeddings are not two floating `[b, D]` matrices of one shape with `b >= 1`, `scale` or
            `bias` is not one number, `tile_size` is below 1, or `exchange` is unknown.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.losses import sigmoid_contrastive_loss
    >>> embeddings = torch.eye(4)
    >>> sigmoid_contrastive_loss(embeddings, embeddings, scale=10.0, bias=-10.0)
    tensor(0.6933)
    >>> sigmoid_contrastive_loss(embeddings, embeddings.roll(1, 0), scale=10.0, bias=-10.0)  # every text is wrong
    tensor(10.6933)

    ```
    """
    image, text, scale, bias = prepare(image, text, scale, bias)
    way = choose_exchange(len(image), ranks, exchange, image.device)
    tile_size = choose_tile_size(way, tile_size)
    with torch.autocast(image.device.type, enabled=False):
        if tile_size is None:
            return _dense_sigmoid(image, text, scale, bias)
        if _wants_gradients(image, text, scale, bias):
            loss: Tensor = TiledSigmoid.apply(  # type: ignore[no-untyped-call]  # torch has no annotation
                image, text, scale, bias, way, tile_size
            )
            return loss
        return sweep_sigmoid(image, text, scale, bias, way, tile_size, gradients=False)[0]


def softmax_contrastive_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    *,
    tile_size: int | None = None,
    ranks: Ranks | None = None,
    exchange: str = "gather",
) -> Tensor:
    r"""Softmax loss of CLIP (arXiv 2103.00020, section 2.3): the mean of two cross-entropies.

    One is that of each image over the texts, the other that of each text over the images.

    Args:
        image (`torch.Tensor` of shape `[b, D]`):
            L2-normalised image embeddings, any floating dtype.
        text (`torch.Tensor` of shape `[b, D]`):
            L2-normalised text embeddings; row i belongs to row i of `image`.
        scale (`torch.Tensor` of one element or `float`):
            Multiplier `s` of the cosines: `logit_scale.exp()`, not its logarithm.
        bias (`torch.Tensor` of one element or `float`, *optional*):
            For models that have a bias. A constant does not change a softmax, so the loss is the same without it. The
            parameter gets a gradient of 0, because DistributedDataParallel refuses unused parameters.
        tile_size (`int`, *optional*):
            As in [`sigmoid_contrastive_loss`].
        ranks ([`Ranks`], *optional*):
            As in [`sigmoid_contrastive_loss`].
        exchange (`str`, *optional*, defaults to `"gather"`):
            As in [`sigmoid_contrastive_loss`]; with `"ring"` the texts go round twice, the first time for the
            normalisers.

    Returns:
        `torch.Tensor`: the loss, a float32 scalar (float64 if an input embedding is float64). Gradients have the
        dtypes of the inputs.

    Raises:
        ValueError: as [`sigmoid_contrastive_loss`].

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.losses import softmax_contrastive_loss
    >>> softmax_contrastive_loss(torch.eye(4), torch.eye(4).roll(1, 0), scale=10.0)
    tensor(10.0001)

    ```
    """
    image, text, scale, bias = prepare(image, text, scale, bias)
    way = choose_exchange(len(image), ranks, exchange, image.device)
    tile_size = choose_tile_size(way, tile_size)
    with torch.autocast(image.device.type, enabled=False):
        if tile_size is None:
            loss = _dense_softmax(image, text, scale)
        elif _wants_gradients(image, text, scale):
            loss = TiledSoftmax.apply(  # type: ignore[no-untyped-call]  # torch has no annotation
                image, text, scale, way, tile_size
            )
        else:
            loss = sweep_softmax(image, text, scale, way, tile_size, gradients=False)[0]
        return loss + 0.0 * bias


LOSSES = {"sigmoid": sigmoid_contrastive_loss, "softmax": softmax_contrastive_loss}


def _dense_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * (image @ text.T) + bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum(dim=1).mean()


def _dense_softmax(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    logits = scale * (image @ text.T)
    positives = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, positives) + F.cross_entropy(logits.T, positives)) / 2


def prepare(
    image: Tensor, text: Tensor, scale: Tensor | float, bias: Tensor | float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check the arguments and cast them to one dtype.

    The casts are part of the graph, so gradients have the dtypes of the inputs.
    """
    if image.ndim != 2 or image.shape != text.shape or len(image) == 0:
        raise ValueError(
            f"image and text must be two [b, D] matrices of the same shape with b >= 1, but their shapes are "
            f"{list(image.shape)} and {list(text.shape)}: pass one row per pair."
        )
    if not (image.is_floating_point() and text.is_floating_point()):
        raise ValueError(f"image and text must be floating point, but are {image.dtype} and {text.dtype}: cast them.")
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    scale = _scalar("scale", scale, dtype, image.device)
    bias = _scalar("bias", 0.0 if bias is None else bias, dtype, image.device)
    return image.to(dtype), text.to(dtype), scale, bias


def _scalar(name: str, value: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    value = torch.as_tensor(value, dtype=dtype, device=device)
    if value.numel() != 1:
        raise ValueError(f"{name} must be one number, but its shape is {list(value.shape)}: pass one for all pairs.")
    return value.reshape(())


def choose_exchange(n_pairs: int, ranks: Ranks | None, exchange: str, device: torch.device) -> Gathered | Ring:
    """Return the way of exchange for a batch of which this rank has `n_pairs`. A collective."""
    if exchange not in EXCHANGES:
        raise ValueError(f"exchange={exchange!r} is unknown: use one of {', '.join(EXCHANGES)}.")
    ranks = Ranks() if ranks is None else ranks
    counts = [n_pairs] if ranks.size == 1 else ranks.gather_counts(n_pairs, device)
    return EXCHANGES[exchange](ranks, counts)


def choose_tile_size(way: Gathered | Ring, tile_size: int | None) -> int | None:
    """Return the number of rows of a tile, or `None` for the dense form."""
    if tile_size is None:
        fits = way.ranks.size == 1 and way.width <= DENSE_LIMIT
        return None if fits else max(1, DENSE_LIMIT**2 // way.width)
    if tile_size < 1:
        raise ValueError(f"tile_size must be at least 1, but is {tile_size}: pass None for the default.")
    return tile_size


def _wants_gradients(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
