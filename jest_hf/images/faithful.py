# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Whether an image processor does no more than its settings say, found out by giving it an image.

A super-batch is made from a processor's settings (size, crop, mean, deviation), without calling it. Some processors of
`transformers` have steps of their own beside these: another order of channels, a crop before the resize, a second
division. A model trained on images made without them would learn, and on other images than it is used on.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor

from jest_hf.images.normalise import Normalisation
from jest_hf.images.pixels import Geometry, PatchGeometry, geometry_of, to_uint8


# On average, in units of black to white: the resizes of PIL and torch are within 0.001 of each other on the image
# below, and the least step of its own that a processor of transformers has (PoolFormer's crop) makes 0.05.
TOLERANCE = 0.02


def faithful_geometry(image_processor: BaseImageProcessor) -> Geometry:
    """
    As [`~images.pixels.geometry_of`], of a processor that does nothing beside.

    Args:
        image_processor (`transformers.BaseImageProcessor`): The processor, which is given one image.

    Raises:
        ValueError: for a processor that gives images of several sizes, or does more to them than its settings say.
    """
    geometry = geometry_of(image_processor)
    if isinstance(geometry, PatchGeometry):  # read off one class alone, and this does what is done here
        return geometry
    image, normalisation = _image(), Normalisation(image_processor)
    pixels = to_uint8(image, geometry)[None]
    made = torch.as_tensor(np.asarray(image_processor(image, return_tensors="pt")["pixel_values"][0]))[None]
    black, white = (normalisation(torch.full_like(pixels, level)) for level in (0, 255))
    if made.shape != pixels.shape or ((made - normalisation(pixels)) / (white - black)).abs().mean() > TOLERANCE:
        raise ValueError(
            f"{type(image_processor).__name__} has steps of its own, beside the resize to size, the centre crop to "
            "crop_size, rescale_factor, image_mean and image_std by which images are made here; switch them off (such "
            "as do_flip_channel_order), or use a ViTImageProcessor with the size, mean and deviation that the model "
            "wants."
        )
    return geometry


def _image() -> Image.Image:
    """Smooth, so that resizes agree; oblong and with other waves in each channel, so that nothing else is missed."""
    y, x = np.mgrid[:60, :90]
    waves = np.stack([y / 7, x / 9 + 1, (x + y) / 11 + 2], axis=-1)
    return Image.fromarray((127.5 + 127.5 * np.sin(waves)).round().astype(np.uint8))


__all__ = ["faithful_geometry"]
