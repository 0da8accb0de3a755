# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Check, by processing one image, that an image processor has no steps beyond its settings.

The images of a super-batch are made from a processor's settings (size, crop, mean, deviation), without calling the
processor. Some processors of `transformers` have further steps: another order of channels, a crop before the resize, a
second division. Without these steps a model would be trained on other images than it is used on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from jest_hf.images.normalise import Normalisation
from jest_hf.images.pixels import Geometry, PatchGeometry, geometry_of, to_uint8


# Mean absolute difference, where 1 is the difference of black and white. On the image below, the resizes of PIL and
# torch differ by at most 0.001, and the smallest further step of a processor of transformers (PoolFormer's crop) by
# 0.05.
TOLERANCE = 0.02


def faithful_geometry(image_processor: Any) -> Geometry:
    """Return the geometry of an image processor that has no steps beyond its settings.

    Args:
        image_processor (`transformers.BaseImageProcessor`): The processor; called with one image.

    Returns:
        [`~jest_hf.images.pixels.Geometry`]: as [`~jest_hf.images.pixels.geometry_of`].

    Raises:
        ValueError: for a processor that gives images of several sizes, or has further steps.
    """
    geometry = geometry_of(image_processor)
    if isinstance(geometry, PatchGeometry):  # one class of processors, which has no further steps
        return geometry
    image, normalisation = _image(), Normalisation(image_processor)
    pixels = to_uint8(image, geometry)[None]
    made = torch.as_tensor(np.asarray(image_processor(image, return_tensors="pt")["pixel_values"][0]))[None]
    black, white = (normalisation(torch.full_like(pixels, level)) for level in (0, 255))
    if made.shape != pixels.shape or ((made - normalisation(pixels)) / (white - black)).abs().mean() > TOLERANCE:
        raise ValueError(
            f"{type(image_processor).__name__} has steps of its own, beyond size, crop_size, rescale_factor, "
            "image_mean and image_std, and images are made from these settings alone; switch the steps off (such as "
            "do_flip_channel_order), or use a ViTImageProcessor with the size, mean and deviation of the model."
        )
    return geometry


def _image() -> Image.Image:
    """Return an image that shows any further step.

    It is smooth, so that all resizes agree, not square, and has another wave in each channel.
    """
    y, x = np.mgrid[:60, :90]
    waves = np.stack([y / 7, x / 9 + 1, (x + y) / 11 + 2], axis=-1)
    return Image.fromarray((127.5 + 127.5 * np.sin(waves)).round().astype(np.uint8))


__all__ = ["faithful_geometry"]
