# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Resize patch kernels, patches and position embeddings (FlexiViT, arXiv 2212.08013, section 3.4).

Let B be the matrix of the bilinear resize from a patch of `h` pixels a side to one of `h2`. PI-resize takes the kernel
that gives resized patches the tokens of the original ones: `w2 = pinv(B^T) w`. Then `<B x, w2> = <x, w>` for every
patch x if h2 >= h; if h2 < h the difference is least in the sense of least squares.

The kernel need not change: `<x2, pinv(B^T) w> = <pinv(B) x2, w>`. Resizing the patches by `pinv(B)` gives the same
tokens and the same gradients, without access to a parameter that an engine may have sharded over devices. So there is
one kernel, and no chain of resizes: a kernel resized there and back (16 -> 32 -> 16) is not the same kernel.

The bilinear resize is that of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False,
antialias=False)`. It is separable, B = B_rows (x) B_columns, and so is its pseudo-inverse: two small matrices replace
one of `[h2 * w2, h * w]`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def resize_patch_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """PI-resize the kernel of a patch embedding: `pinv(B^T) vec(w)` for each filter and channel.

    Always resize the model's own kernel, as a kernel resized there and back is not the same.

    Args:
        kernel (`torch.Tensor`): Floating, `[out, in, h, w]`. Gradients flow to it.
        size (`tuple[int, int]`): The new height and width, in pixels.

    Returns:
        `torch.Tensor`: `[out, in, *size]` of the same dtype and device, computed in float32 or better; `kernel` itself
            if it has that size.

    Raises:
        ValueError: if a side of `size` is below 1, or `kernel` does not have four dimensions.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.models import resize_patch_kernel
    >>> resize_patch_kernel(torch.ones(1, 1, 2, 2), (4, 4))[0, 0]  # a constant patch keeps its token
    tensor([[0.2500, 0.2500, 0.2500, 0.2500],
            [0.2500, 0.2500, 0.2500, 0.2500],
            [0.2500, 0.2500, 0.2500, 0.2500],
            [0.2500, 0.2500, 0.2500, 0.2500]])

    ```
    """
    if kernel.dim() != 4 or min(size) < 1:
        raise ValueError(
            f"kernel of shape {tuple(kernel.shape)} and size={tuple(size)}: give a kernel [out, in, h, w] and a new "
            "height and width of at least 1."
        )
    (old_rows, old_columns), (rows, columns) = kernel.shape[-2:], size
    if (old_rows, old_columns) == (rows, columns):
        return kernel
    return _between(pi_resize_matrix(old_rows, rows), kernel, pi_resize_matrix(old_columns, columns).T)


def resize_patches(images: Tensor, patch_size: int, new_patch_size: int) -> Tensor:
    """Resize each patch of an image by itself, with `pinv(B)`; B is the bilinear resize from new to old patches.

    A kernel of `new_patch_size` gives the result the tokens that the same kernel, PI-resized to `patch_size`, gives
    `images`.

    Args:
        images (`torch.Tensor`): Floating, `[b, channels, rows * patch_size, columns * patch_size]`.
        patch_size (`int`): Side of the patches in `images`, in pixels.
        new_patch_size (`int`): Side of the patches in the result, in pixels.

    Returns:
        `torch.Tensor`: `[b, channels, rows * new_patch_size, columns * new_patch_size]`, dtype and device as given.

    Raises:
        ValueError: if `images` cannot be cut into patches of `patch_size`.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"images of {height} x {width} pixels have no whole number of patches of {patch_size}: choose a "
            "patch_size that divides both."
        )
    if patch_size == new_patch_size:
        return images
    matrix = pi_resize_matrix(new_patch_size, patch_size)
    patches = torch.unflatten(torch.unflatten(images, 3, (-1, patch_size)), 2, (-1, patch_size)).transpose(3, 4)
    resized = _between(matrix.T, patches, matrix)  # [b, channels, rows, columns, new, new]
    return resized.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize the position embeddings of a square grid of patches to another grid, bilinear and antialiased.

    Args:
        positions (`torch.Tensor`): `[n * n, width]`, row by row, without the position of a class token.
        grid (`tuple[int, int]`): Rows and columns of the new grid.

    Returns:
        `torch.Tensor`: `[rows * columns, width]` of the same dtype and device, computed in float32 or better;
            `positions` itself if the grid is the same.
    """
    side = round(len(positions) ** 0.5)
    if (side, side) == tuple(grid):
        return positions
    wide = positions.to(torch.promote_types(positions.dtype, torch.float32))
    square = torch.unflatten(wide, 0, (side, side)).permute(2, 0, 1)[None]
    resized = interpolate(square, size=grid, mode="bilinear", align_corners=False, antialias=True)[0]
    return resized.flatten(1).T.to(positions.dtype)


# A cached tensor is used by every later call, so it must be an ordinary CPU tensor even if the first call happens in
# inference mode or under a default device.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
@torch.no_grad()
def pi_resize_matrix(size: int, new_size: int) -> Tensor:
    """Return `pinv(B^T)`, float64 `[new_size, size]`, for B the resize of a row of `size` pixels; do not change it."""
    pixels = torch.eye(size, dtype=torch.float64, device="cpu")[None]
    transposed = interpolate(pixels, size=new_size, mode="linear", align_corners=False)[0]  # row i: pixel i, resized
    matrix: Tensor = torch.linalg.pinv(transposed)
    return matrix


def _between(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """Return `left @ values @ right` in the dtype of `values`, computed in float32 or better, also under autocast."""
    with torch.autocast(values.device.type, enabled=False):
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        return (left.to(wide) @ wide @ right.to(wide)).to(values.dtype)


__all__ = ["pi_resize_matrix", "resize_patch_kernel", "resize_patches", "resize_positions"]
