# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Image-text retrieval: how often is a right item among the first k?

Each image and each text has a group number, and an item is right for a query when their groups agree: plain pairs,
several captions of one image and several images that share a caption are all the same case. The rank of a query is the
number of wrong items that score at least as high as its best right item, so recall at k is the share of queries with a
rank below k.

Ties count against the query. Otherwise a collapsed model, which embeds everything alike, would be perfect. Scores are
cosines in float32, whose rounding depends on how the matrix product is blocked: scores within [`TIE`] are equal.

Queries are taken a tile at a time; the `[Ni, Nt]` matrix never exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


Array = Tensor | np.ndarray | Sequence[Any]

# Cosines closer than this are a tie: above float32 rounding noise, below any difference that means something.
TIE = 1e-6


def retrieval_recall(
    image: Array,
    text: Array,
    image_groups: Array | None = None,
    text_groups: Array | None = None,
    ks: Sequence[int] = (1, 5, 10),
    tile_size: int = 256,
) -> dict[str, float]:
    """
    Recall at k of image-to-text and text-to-image retrieval.

    Args:
        image (`torch.Tensor`, `np.ndarray` or nested list of shape `[Ni, D]`):
            Image embeddings, any floating dtype; normalised here.
        text (`torch.Tensor`, `np.ndarray` or nested list of shape `[Nt, D]`):
            Text embeddings, any floating dtype; normalised here.
        image_groups (integers of shape `[Ni]`, *optional*, defaults to `0 ... Ni - 1`):
            Group of each image. Images that share a caption share a group.
        text_groups (integers of shape `[Nt]`, *optional*, defaults to `0 ... Nt - 1`):
            Group of each text. With several captions per image and no `image_groups`: the row of the text's image.
        ks (sequence of `int`, *optional*, defaults to `(1, 5, 10)`):
            The k of recall at k; at least 1. A k beyond the size of the gallery is always met.
        tile_size (`int`, *optional*, defaults to `256`):
            Queries ranked at a time. Bounds memory, does not change the result.

    Returns:
        `dict[str, float]`: for each k the keys `image_to_text_R@k`, `text_to_image_R@k` and `R@k`, the mean of the
        two; each between 0 and 1.

    Raises:
        ValueError: if embeddings are empty, not finite or of different widths, groups do not match them, a query has
            no item of its group in the other modality, or `ks` or `tile_size` hold a number below 1.
    """
    image, text = as_embeddings("image", image), as_embeddings("text", text)
    if image_groups is None and text_groups is None and len(image) != len(text):
        raise ValueError(
            f"{len(image)} images and {len(text)} texts are not pairs: pass text_groups with each text's image row."
        )
    image_groups = as_groups("image_groups", image_groups, image)
    text_groups = as_groups("text_groups", text_groups, text)
    check_ks(ks)
    for name, groups, others in (("image", image_groups, text_groups), ("text", text_groups, image_groups)):
        alone = int((~torch.isin(groups, others)).sum())
        if alone:
            raise ValueError(
                f"{alone} of {len(groups)} {name} rows have no counterpart of their group: drop these rows or correct "
                f"image_groups and text_groups."
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
    """
    Rank of each query's best own item: the number of items of other groups that score at least as high, up to [`TIE`].

    Args:
        queries (`torch.Tensor` of shape `[N, D]`): normalised float32 embeddings.
        gallery (`torch.Tensor` of shape `[M, D]`): normalised float32 embeddings.
        query_groups (`torch.Tensor` of shape `[N]`): int64; each occurs in `gallery_groups`.
        gallery_groups (`torch.Tensor` of shape `[M]`): int64.
        tile_size (`int`): queries at a time.

    Returns:
        `torch.Tensor` of shape `[N]`: int64 ranks, 0 is best.
    """
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"The embeddings compared have widths {queries.shape[1]} and {gallery.shape[1]}: take both from one model."
        )
    if tile_size < 1:
        raise ValueError(f"tile_size must be at least 1, but is {tile_size}: the default is 256.")
    ranks = []
    with torch.autocast(queries.device.type, enabled=False):
        for rows, groups in zip(torch.split(queries, tile_size), torch.split(query_groups, tile_size), strict=True):
            scores = rows @ gallery.T
            own = groups[:, None] == gallery_groups
            best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
            ranks.append(scores.masked_fill_(own, -torch.inf).ge(best - TIE).sum(dim=1))
    return torch.cat(ranks)


def share_below(ranks: Tensor, k: int) -> float:
    """Share of the ranks below k. Counted in integers: a float32 mean of a million ranks would be off."""
    return int((ranks < k).sum()) / len(ranks)


def as_embeddings(name: str, values: Array) -> Tensor:
    """`values` as a normalised float32 matrix on its own device, checked."""
    if isinstance(values, Tensor):
        matrix = values.detach().float()
    else:
        matrix = torch.tensor(np.asarray(values, dtype=np.float32))
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ValueError(f"{name} must be a matrix of embeddings, one per row, but its shape is {list(matrix.shape)}.")
    broken = int((~matrix.isfinite().all(dim=1)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(matrix)} rows of {name} hold NaN or infinity: the model that embedded them diverged or "
            f"overflowed, evaluate an earlier checkpoint or in float32."
        )
    return F.normalize(matrix, dim=1)


def as_groups(name: str, values: Array | None, embeddings: Tensor) -> Tensor:
    """`values` as int64, one per row of `embeddings` and on its device; the row numbers if there are none."""
    if values is None:
        return torch.arange(len(embeddings), device=embeddings.device)
    groups = values if isinstance(values, Tensor) else torch.tensor(np.asarray(values))
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, but is {groups.dtype}: number the groups.")
    if groups.shape != (len(embeddings),):
        raise ValueError(
            f"{name} must be one integer per embedding, of shape [{len(embeddings)}], but has {list(groups.shape)}."
        )
    return groups.to(device=embeddings.device, dtype=torch.int64)


def check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be positive integers, but is {list(ks)}: (1, 5, 10) is usual.")
