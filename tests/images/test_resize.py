# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""PI-resize against its closed form; tokens do not change when patches are enlarged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d, interpolate

from jest_hf.images.resize import pi_resize_matrix, resize_patches, resize_positions
from jest_hf.models import resize_patch_kernel


def kernel_of(size, seed=0, dtype=torch.float64):
    return torch.randn(5, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bilinear(patches, size):
    return interpolate(patches, size=size, mode="bilinear", align_corners=False, antialias=False)


def closed_form(kernel, size):
    """Compute pinv(B^T) vec(w) with the whole matrix B: column i resizes the patch whose only pixel is i."""
    height, width = kernel.shape[-2:]
    pixels = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    b = bilinear(pixels, size).flatten(1).T
    resized = torch.linalg.pinv(b.T) @ kernel.flatten(2).unsqueeze(-1)
    return resized.squeeze(-1).unflatten(2, size)


def tokens(images, kernel):
    return conv2d(images, kernel, stride=kernel.shape[-2:])


SIDES = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, new_height=SIDES, new_width=SIDES, seed=st.integers(0, 1000))
def test_it_is_the_closed_form(height, width, new_height, new_width, seed):
    kernel, size = kernel_of((height, width), seed), (new_height, new_width)
    torch.testing.assert_close(resize_patch_kernel(kernel, size), closed_form(kernel, size), rtol=0, atol=1e-9)


@pytest.mark.parametrize("old, new", [(16, 32), (14, 28), (16, 24), (32, 16), (14, 16)])
def test_it_is_the_closed_form_at_the_sizes_of_real_models(old, new):
    kernel = kernel_of((old, old))
    expected = closed_form(kernel, (new, new))
    torch.testing.assert_close(resize_patch_kernel(kernel, (new, new)), expected, rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, more=st.tuples(st.integers(0, 9), st.integers(0, 9)), seed=st.integers(0, 1000))
def test_enlarged_patches_keep_their_tokens(height, width, more, seed):
    kernel = kernel_of((height, width), seed)
    patches = torch.randn(7, 3, height, width, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    size = (height + more[0], width + more[1])
    found = tokens(bilinear(patches, size), resize_patch_kernel(kernel, size))
    torch.testing.assert_close(found, tokens(patches, kernel), rtol=0, atol=1e-9)


def test_a_kernel_of_that_size_is_returned_as_it_is():
    kernel = kernel_of((4, 6))
    assert resize_patch_kernel(kernel, (4, 6)) is kernel
    assert resize_patch_kernel(kernel, torch.Size((4, 6))) is kernel


def test_there_and_back_is_another_kernel():
    """The reason why kernels are never resized in a chain: a smaller kernel cannot represent the larger one."""
    kernel = kernel_of((16, 16))
    enlarged = resize_patch_kernel(kernel, (32, 32))
    back = resize_patch_kernel(enlarged, (16, 16))
    assert (back - kernel).abs().max() > 0.5
    # Enlarging is exact; reducing is a least-squares fit by 16 pixels, with a large residual.
    patches = torch.randn(200, 3, 32, 32, dtype=torch.float64)
    wanted = tokens(patches, enlarged)
    reduced = bilinear(patches, (16, 16))
    left_over = (tokens(reduced, back) - wanted).norm() / wanted.norm()
    assert 0.3 < left_over < (tokens(reduced, kernel) - wanted).norm() / wanted.norm()


@pytest.mark.parametrize("size", [(3, 5), (7, 6)])
def test_gradients_reach_the_kernel(size):
    kernel = kernel_of((4, 5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda kernel: resize_patch_kernel(kernel, size), kernel)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("autocast", [False, True])
def test_dtypes_are_kept_and_autocast_does_not_round(dtype, tolerance, autocast):
    kernel = kernel_of((8, 8)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = resize_patch_kernel(kernel, (16, 16))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), closed_form(kernel.double(), (16, 16)), rtol=tolerance, atol=tolerance)


def test_a_matrix_first_made_in_inference_mode_serves_training():
    pi_resize_matrix.cache_clear()
    with torch.inference_mode():
        resize_patch_kernel(kernel_of((5, 5)), (10, 10))
    kernel = kernel_of((5, 5)).requires_grad_()
    resize_patch_kernel(kernel, (10, 10)).sum().backward()
    assert kernel.grad.abs().max() > 0
    assert pi_resize_matrix.cache_info().misses == 1


@pytest.mark.parametrize("shape, size", [((3, 4, 4), (8, 8)), ((5, 3, 4, 4), (0, 8))])
def test_no_kernel_and_no_size(shape, size):
    with pytest.raises(ValueError, match="give a kernel"):
        resize_patch_kernel(torch.zeros(shape), size)


@pytest.mark.parametrize("patch, new", [(6, 3), (5, 3), (3, 6), (32, 16)])
def test_resized_patches_and_the_own_kernel_give_the_tokens_of_the_resized_kernel(patch, new):
    images = torch.randn(2, 3, 2 * patch, 3 * patch, dtype=torch.float64)
    kernel = kernel_of((new, new)).requires_grad_()
    small = resize_patches(images, patch, new)
    assert small.shape == (2, 3, 2 * new, 3 * new)
    found = tokens(small, kernel)
    expected = tokens(images, resize_patch_kernel(kernel, (patch, patch)))
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((value * weights).sum(), kernel)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_patches_that_do_not_fit_or_need_no_resize():
    images = torch.randn(2, 3, 12, 18)
    assert resize_patches(images, 6, 6) is images
    with pytest.raises(ValueError, match="12 x 18 pixels have no whole number of patches of 5"):
        resize_patches(images, 5, 3)


def triangle_filter(size, new_size):
    """Bilinear resize with antialiasing, by its definition: normalised weights of a triangle as wide as the step."""
    step = size / new_size
    width = max(step, 1.0)
    rows = []
    for i in range(new_size):
        centre = (i + 0.5) * step
        weights = [max(0.0, 1 - abs(j + 0.5 - centre) / width) for j in range(size)]
        rows.append([weight / sum(weights) for weight in weights])
    return torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
# Two columns and more: torch 2.13 errs on CPUs where it makes several rows of one column, which no view does.
@given(side=st.integers(1, 8), rows=st.integers(1, 8), columns=st.integers(2, 8))
def test_positions_are_resized_bilinearly_with_antialiasing(side, rows, columns):
    positions = torch.randn(side * side, 3, generator=torch.Generator().manual_seed(side), dtype=torch.float64)
    square = positions.view(side, side, 3)
    expected = torch.einsum("ai,bj,ijd->abd", triangle_filter(side, rows), triangle_filter(side, columns), square)
    found = resize_positions(positions, (rows, columns))
    torch.testing.assert_close(found, expected.reshape(rows * columns, 3), rtol=0, atol=1e-9)


def test_positions_of_the_same_grid_and_in_half_precision():
    positions = torch.randn(16, 5)
    assert resize_positions(positions, (4, 4)) is positions
    half = resize_positions(positions.bfloat16(), (2, 2))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), resize_positions(positions, (2, 2)), rtol=0.02, atol=0.02)
