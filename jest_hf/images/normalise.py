# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The last step of an image processor, on the device. Until then images are uint8, a quarter of float32's bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Normalisation:
    """Rescale uint8 pixels, subtract the mean of each channel and divide by the channel's deviation.

    Args:
        image_processor ([`~transformers.BaseImageProcessor`]): Has the factor, the means and the deviations.

    Example:

    ```python
    >>> import torch
    >>> from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    >>> from jest_hf.images.normalise import Normalisation
    >>> normalise = Normalisation(SiglipImageProcessorPil(image_mean=0.5, image_std=0.5))
    >>> normalise(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2))[0, 0].round()
    tensor([[-1.,  1.]])

    ```
    """

    def __init__(self, image_processor: Any) -> None:
        scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
        mean, std = (0.0, 1.0)
        if image_processor.do_normalize:
            mean, std = image_processor.image_mean, image_processor.image_std
        self._mean = torch.as_tensor(mean, dtype=torch.float32).expand(3) / scale
        self._std = torch.as_tensor(std, dtype=torch.float32).expand(3) / scale

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise images on their device.

        Args:
            pixels (`torch.Tensor`): uint8 `[b, 3, H, W]`, or patches `[b, P, p * p * 3]`. Pixels of another dtype are
                normalised already and are returned as they are.

        Returns:
            `torch.Tensor`: float32, of the same shape.
        """
        if pixels.dtype != torch.uint8:
            return pixels
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        if pixels.dim() == 4:
            return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        # In flat patches the channels are last, so the three channels alternate.
        repeats = pixels.shape[-1] // 3
        return (pixels - mean.repeat(repeats)) / std.repeat(repeats)


__all__ = ["Normalisation"]
