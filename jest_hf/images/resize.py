# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Patch kernels, patches and position embeddings at another size (FlexiViT, arXiv 2212.08013, section 3.4).

Let B be the matrix of the bilinear resize from a patch of `h` pixels a side to one of `h2`. PI-resize chooses the
kernel that gives resized patches the tokens of the original ones: `w2 = pinv(B^T) w`, since then `<B x, w2> = <x, w>`
for every patch x if h2 >= h (and as nearly as can be if h2 < h).

The same inner product can be had without touching the kernel: `<x2, pinv(B^T) w> = <pinv(B) x2, w>`. Resizing the
patches by `pinv(B)` and leaving the kernel alone gives the same tokens and the same gradients, and it needs no access
to a parameter that an engine may have spread over devices. So there is one kernel only, and no chain of resizes:
enlarging a patch and reducing it again blurs it, and a kernel resized there and back (16 -> 32 -> 16) is another one.

The bilinear resize is that of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False,
antialias=False)`. It is separable, B = B_rows (x) B_columns, and so is its pseudo-inverse: two small matrices in place
of one of `[h2 * w2, h * w]`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def resize_patch_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """
    PI-resize of a patch embedding's kernel: `pinv(B^T) vec(w)` for each filter and channel.

    Resize from the model's own kernel each time: there and back again is not the same kernel.

    Args:
        kernel (`torch.Tensor`): Floating, `[out, in, h, w]`. Gradients flow to it.
        size (`tuple[int, int]`): The new height and width, in pixels.

    Returns:
        `torch.Tensor`: `[out, in, *size]` of the same dtype and device, computed in float32 or better; `kernel` itself
            if it has that size.

    Raises:
        ValueError: if a side of `size` is below 1, or `kernel` has not four dimensions.
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
    """
    Resize each patch of an image by itself, by `pinv(B)`, B being the bilinear resize from new to present patches.

    A kernel of `new_patch_size` makes of the result the tokens that this kernel, PI-resized to `patch_size`, makes of
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
        raise ValueError(f"images of {height} x {width} pixels have no whole number of patches of {patch_size}.")
    if patch_size == new_patch_size:
        return images
    matrix = pi_resize_matrix(new_patch_size, patch_size)
    patches = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size)).transpose(3, 4)
    resized = _between(matrix.T, patches, matrix)  # [b, channels, rows, columns, new, new]
    return resized.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """
    Position embeddings of a square grid of patches for another grid: bilinear, antialiased.

    Args:
        positions (`torch.Tensor`): `[n * n, width]`, row by row, without the position of a class token.
        grid (`tuple[int, int]`): Rows and columns of the new grid.

    Returns:
        `torch.Tensor`: `[rows * columns, width]` of the same dtype and device, computed in float32 or better;
            `positions` itself if that is its grid.
    """
    side = round(len(positions) ** 0.5)
    if (side, side) == tuple(grid):
        return positions
    wide = positions.to(torch.promote_types(positions.dtype, torch.float32))
    square = wide.unflatten(0, (side, side)).permute(2, 0, 1)[None]
    resized = interpolate(square, size=grid, mode="bilinear", align_corners=False, antialias=True)[0]
    return resized.flatten(1).T.to(positions.dtype)


# A cached tensor must serve every later call: an ordinary one on the CPU, whatever is switched on in the first.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
@torch.no_grad()
def pi_resize_matrix(size: int, new_size: int) -> Tensor:
    """`pinv(B^T)`, float64 `[new_size, size]`, of the resize B of a row of `size` pixels; shared, so do not write."""
    pixels = torch.eye(size, dtype=torch.float64, device="cpu")[None]
    transposed = interpolate(pixels, size=new_size, mode="linear", align_corners=False)[0]  # row i: pixel i, resized
    return torch.linalg.pinv(transposed)


def _between(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """`left @ values @ right` in float32 or better, also under autocast, in the dtype of `values`."""
    with torch.autocast(values.device.type, enabled=False):
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        return (left.to(wide) @ wide @ right.to(wide)).to(values.dtype)


__all__ = ["pi_resize_matrix", "resize_patch_kernel", "resize_patches", "resize_positions"]
