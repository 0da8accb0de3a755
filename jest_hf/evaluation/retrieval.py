# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Image-text retrieval: recall at k, the share of queries with a right item among the first k.

Each image and each text has a group number. An item is right for a query if both have the same group. This covers
plain pairs, several captions of one image, and several images with the same caption. The rank of a query is the number
of wrong items that score at least as high as the best right item; recall at k is the share of queries with a rank
below k.

Ties count against the query: otherwise a collapsed model, which gives all items the same embedding, would have perfect
recall. Scores are cosines in float32, whose rounding depends on the blocking of the matrix product, so scores that
differ by at most [`TIE`] are equal.

Queries are ranked a tile at a time, so that the whole `[Ni, Nt]` matrix is never in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


Array = Tensor | np.ndarray | Sequence[Any]

# Cosines closer than this are a tie: larger than float32 rounding errors, smaller than a difference that matters.
TIE = 1e-6


def retrieval_recall(
    image: Array,
    text: Array,
    image_groups: Array | None = None,
    text_groups: Array | None = None,
    ks: Sequence[int] = (1, 5, 10),
    tile_size: int = 256,
) -> dict[str, float]:
    """Compute recall at k of image-to-text and text-to-image retrieval.

    Args:
        image (`torch.Tensor`, `np.ndarray` or nested list of shape `[Ni, D]`):
            Image embeddings, any floating dtype, normalised or not.
        text (`torch.Tensor`, `np.ndarray` or nested list of shape `[Nt, D]`):
            Text embeddings, any floating dtype, normalised or not.
        image_groups (integers of shape `[Ni]`, *optional*, defaults to `0 ... Ni - 1`):
            Group of each image. Images with the same caption have the same group.
        text_groups (integers of shape `[Nt]`, *optional*, defaults to `0 ... Nt - 1`):
            Group of each text. With several captions per image and without `image_groups`, the row of the text's
            image.
        ks (sequence of `int`, *optional*, defaults to `(1, 5, 10)`):
            Values of k, each at least 1. Recall is 1 for a k of at least the number of items.
        tile_size (`int`, *optional*, defaults to `256`):
            Queries ranked at a time. It limits the memory and does not change the result.

    Returns:
        `dict[str, float]`: For each k the keys `image_to_text_R@k`, `text_to_image_R@k` and `R@k`, the mean of the
        two; each between 0 and 1.

    Raises:
        ValueError: If embeddings are empty, not finite or of different widths, groups do not match them, a query has
            no item of its group in the other modality, or a number in `ks` or `tile_size` is below 1.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.evaluation import retrieval_recall
    >>> image, text = torch.eye(3), torch.eye(3)[[0, 2, 1]]  # the captions of images 1 and 2 are swapped
    >>> recalls = retrieval_recall(image, text, ks=(1, 3))
    >>> round(recalls["R@1"], 2), recalls["R@3"]
    (0.33, 1.0)

    ```
    """
    image, text = as_embeddings("image", image), as_embeddings("text", text)
    if image_groups is None and text_groups is None and len(image) != len(text):
        raise ValueError(
            f"{len(image)} images and {len(text)} texts are not pairs; pass text_groups with the row of each text's "
            "image."
        )
    image_groups = as_groups("image_groups", image_groups, image)
    text_groups = as_groups("text_groups", text_groups, text)
    check_ks(ks)
    for name, groups, others in (("image", image_groups, text_groups), ("text", text_groups, image_groups)):
        unmatched = int((~torch.isin(groups, others)).sum())
        if unmatched:
            raise ValueError(
                f"{unmatched} of {len(groups)} {name} rows have no counterpart of their group; drop these rows, or "
                "correct image_groups and text_groups."
            )

    to_text = group_ranks(image, text, image_groups, text_groups, tile_size)
    to_image = group_ranks(text, image, text_groups, image_groups, tile_size)
    result = {}
    for k in ks:
        result[f"image_to_text_R@{k}"] = share_below(to_text, k)
        result[f"text_to_image_R@{k}"] = share_below(to_image, k)
        result[f"R@{k}"] = (result[f"image_to_text_R@{k}"] + result[f"text_to_image_R@{k}"]) / 2
    return result


@torch.no_grad()
def group_ranks(
    queries: Tensor, gallery: Tensor, query_groups: Tensor, gallery_groups: Tensor, tile_size: int
) -> Tensor:
    """Rank the best item of each query's group among the items of other groups.

    The rank is the number of items of other groups that score at least as high, up to [`TIE`].

    Args:
        queries (`torch.Tensor` of shape `[N, D]`): Normalised float32 embeddings.
        gallery (`torch.Tensor` of shape `[M, D]`): Normalised float32 embeddings.
        query_groups (`torch.Tensor` of shape `[N]`): int64; each group occurs in `gallery_groups`.
        gallery_groups (`torch.Tensor` of shape `[M]`): int64.
        tile_size (`int`): Queries ranked at a time.

    Returns:
        `torch.Tensor` of shape `[N]`: Ranks, int64, 0 for the best.

    Raises:
        ValueError: If the embeddings have different widths, or `tile_size` is below 1.
    """
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"The embeddings compared have widths {queries.shape[1]} and {gallery.shape[1]}; pass embeddings of one "
            "model."
        )
    if tile_size < 1:
        raise ValueError(f"tile_size={tile_size} must be at least 1; leave tile_size out for the default.")
    ranks = []
    with torch.autocast(queries.device.type, enabled=False):
        for rows, groups in zip(torch.split(queries, tile_size), torch.split(query_groups, tile_size), strict=True):
            scores = rows @ gallery.T
            own = groups[:, None] == gallery_groups
            best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
            ranks.append(scores.masked_fill_(own, -torch.inf).ge(best - TIE).sum(dim=1))
    return torch.cat(ranks)


def share_below(ranks: Tensor, k: int) -> float:
    """Return the share of ranks below k, counted in integers, since a float32 mean of many ranks is inexact."""
    return int((ranks < k).sum()) / len(ranks)


def as_embeddings(name: str, values: Array) -> Tensor:
    """Check `values` and return them as a normalised float32 matrix on the same device; `name` is for messages."""
    if isinstance(values, Tensor):
        matrix = values.detach().float()
    else:
        matrix = torch.tensor(np.asarray(values, dtype=np.float32))
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ValueError(f"{name} must be a matrix with one embedding in each row; its shape is {list(matrix.shape)}.")
    broken = int((~matrix.isfinite().all(dim=1)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(matrix)} rows of {name} hold NaN or infinity, so the model has diverged or overflowed; "
            "evaluate an earlier checkpoint, or in float32."
        )
    return F.normalize(matrix, dim=1)


def as_groups(name: str, values: Array | None, embeddings: Tensor) -> Tensor:
    """Check `values`, one for each row of `embeddings`, and return them as int64 on the device of `embeddings`.

    Without `values` the row numbers are returned; `name` is for error messages.
    """
    if values is None:
        return torch.arange(len(embeddings), device=embeddings.device)
    groups = values if isinstance(values, Tensor) else torch.tensor(np.asarray(values))
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise ValueError(f"{name} must be integers and not {groups.dtype}; number the groups.")
    if groups.shape != (len(embeddings),):
        raise ValueError(
            f"{name} must be one integer per embedding, of shape [{len(embeddings)}] and not {list(groups.shape)}."
        )
    return groups.to(device=embeddings.device, dtype=torch.int64)


def check_ks(ks: Sequence[int]) -> None:
    """Raise `ValueError` unless `ks` holds positive integers."""
    if not ks or min(ks) < 1:
        raise ValueError(f"ks={list(ks)} must be positive integers; pass for instance ks=(1, 5, 10).")
