# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Resize uint8 pixels: with torch for bilinear and bicubic filters, with PIL for all others.

The bicubic resize of `torch.nn.functional.interpolate(antialias=True)` on uint8 has PIL's filter and PIL's edges, and
takes about a quarter of PIL's time. Its results are at most 2 levels of 255 off PIL's (1 for bilinear), since torch
rounds the weights of the filter to 16 bits and PIL to 22. The two passes must come in the same order, as a bicubic
pass can leave [0, 255] and is clipped. torch makes the horizontal pass first. PIL does so too, but from version 13 on
it begins with the vertical pass where the height shrinks by much more than the width.

torch resizes a uint8 image in the calling thread, so a loader's workers and the main process start no further threads.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from PIL import __version__ as pil_version
from torch.nn.functional import interpolate


MODES: dict[int, str] = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
MOST_LEVELS = 2  # the largest difference from PIL, of 255 levels
_VERTICAL_FIRST = int(pil_version.partition(".")[0]) >= 13
# Height and width before and after: smaller, larger, one of each, and sizes at which PIL 13 begins vertically.
_TRIALS = (
    ((41, 37), (16, 15)),
    ((9, 11), (24, 20)),
    ((12, 30), (20, 11)),
    ((64, 30), (20, 17)),
    ((30, 9), (11, 20)),
)


def resize(pixels: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Resize an RGB image, antialiased.

    Args:
        pixels (`np.ndarray`): uint8 `[H, W, 3]`.
        size (`tuple[int, int]`): Height and width of the result, in pixels.
        resample (`int`): PIL's resampling filter.

    Returns:
        `np.ndarray`: uint8 `[height, width, 3]`, at most 2 levels off PIL's; `pixels` itself if it has that size.

    Example:

    ```python
    >>> import numpy as np
    >>> from PIL import Image
    >>> from jest_hf.images.resizing import resize
    >>> resize(np.full((40, 60, 3), 255, dtype=np.uint8), (2, 2), Image.Resampling.BICUBIC)[..., 0]
    array([[255, 255],
           [255, 255]], dtype=uint8)

    ```
    """
    if pixels.shape[:2] == size:
        return pixels
    return _by_torch(pixels, size, resample) if resizer(resample) == "torch" else _by_pil(pixels, size, resample)


@lru_cache(maxsize=16)
def resizer(resample: int) -> str:
    """Return what resizes with PIL's filter `resample`: `"torch"` or `"PIL"`.

    On first use torch resizes a few small images. If a result is more than 2 levels off PIL's, as with a version of
    PIL that has another order of passes, PIL resizes.
    """
    if resample not in MODES:
        return "PIL"
    levels = np.random.default_rng(0)
    for before, after in _TRIALS:
        pixels = levels.choice(np.array([0, 255], dtype=np.uint8), (*before, 3))
        one, other = _by_torch(pixels, after, resample), _by_pil(pixels, after, resample)
        if np.abs(one.astype(int) - other.astype(int)).max() > MOST_LEVELS:
            return "PIL"
    return "torch"


def _by_torch(pixels: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # channels stay last in memory
    if _VERTICAL_FIRST and size[0] < height and height - size[0] > 2 * (width - size[1]):
        image = interpolate(image, size=(size[0], width), mode=MODES[resample], antialias=True)
    resized = interpolate(image, size=size, mode=MODES[resample], antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _by_pil(pixels: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    return np.array(Image.fromarray(pixels).resize(size[::-1], resample))


__all__ = ["MOST_LEVELS", "resize", "resizer"]
