# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""In which precision a device selects: sums in float64 where there is float64, and matrix products as chosen.

The products of embeddings take most of the time of a joint draw. A GPU has faster units for them that round their
inputs: to 10 bits of mantissa (TF32) or to 7 (bfloat16). All of them add up in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


PRECISIONS = ("float32", "tf32", "bfloat16")


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of sums and keys: float64, or float32 on Apple's MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Within, products of float32 matrices on a CUDA device are IEEE float32, or TF32 for `"tf32"`.

    Neither the global setting of torch nor an enclosing autocast reaches them, and both are as before afterwards.
    """
    if device.type != "cuda":
        yield
        return
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        settings.fp32_precision = before


__all__ = ["PRECISIONS", "products", "wide_dtype"]
