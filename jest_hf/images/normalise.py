# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The last step of an image processor, on the device: until then images stay uint8, a quarter of the bytes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor


class Normalisation:
    """
    From uint8 pixels to what a model was trained on: rescaled, less the mean, by the deviation of each channel.

    Args:
        image_processor ([`~transformers.BaseImageProcessor`]): Names the factor, the means and the deviations.
    """

    def __init__(self, image_processor: BaseImageProcessor) -> None:
        scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
        mean, std = (0.0, 1.0)
        if image_processor.do_normalize:
            mean, std = image_processor.image_mean, image_processor.image_std
        self._mean = torch.as_tensor(mean, dtype=torch.float32).expand(3) / scale
        self._std = torch.as_tensor(std, dtype=torch.float32).expand(3) / scale

    def __call__(self, pixels: Tensor) -> Tensor:
        """
        Normalise images on their device.

        Args:
            pixels (`torch.Tensor`): uint8 `[b, 3, H, W]`, or `[b, P, p * p * 3]` of patches; what is not uint8 is
                taken to be normalised already.

        Returns:
            `torch.Tensor`: float32, of the same shape.
        """
        if pixels.dtype != torch.uint8:
            return pixels
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        if pixels.dim() == 4:
            return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        # Flat patches, channels last: the three channels alternate.
        repeats = pixels.shape[-1] // 3
        return (pixels - mean.repeat(repeats)) / std.repeat(repeats)


__all__ = ["Normalisation"]
