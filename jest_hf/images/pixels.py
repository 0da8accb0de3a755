# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""From decoded images to uint8 pixels of the size of a model.

Three steps, each a pure function: [`~jest_hf.images.decoding.decode_image`] (bytes, path, array or PIL image to RGB),
[`to_uint8`] (resize and centre crop) and, for SigLIP 2 NaFlex, [`naflex_patches`]. The result is at most 2 of 255
levels off that of the PIL image processors of `transformers` before rescaling and normalising, and equal to it for
filters other than bilinear and bicubic. Rescaling and normalising happen on the device, so that a super-batch is
transferred as uint8. A geometry describes the shapes that an image processor makes, without colours: two models with
equal geometries share the pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from jest_hf.images.decoding import BrokenImage, check_pixels, decode_image, decode_pixels
from jest_hf.images.resizing import resize


naflex_size = lru_cache(maxsize=4096)(get_image_size_for_max_num_patches)  # a binary search in Python takes 40 µs


@dataclass(frozen=True)
class ImageGeometry:
    """Resize, then centre crop: what an image processor does to the shape of an image.

    Args:
        size (`tuple[int, int]`, *optional*): Height and width to resize to, in pixels.
        shortest_edge (`int`, *optional*): Length to resize the shorter side to, in pixels, keeping the aspect ratio.
        crop_size (`tuple[int, int]`, *optional*): Height and width of the centre crop, in pixels; smaller images are
            padded with zeros.
        resample (`int`, *optional*, defaults to `PIL.Image.Resampling.BICUBIC`): PIL's resampling filter. PIL always
            antialiases.

    Raises:
        ValueError: if images of different shapes would keep different shapes, as a batch needs one shape.
    """

    size: tuple[int, int] | None = None
    shortest_edge: int | None = None
    crop_size: tuple[int, int] | None = None
    resample: int = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        if self.size is None and self.crop_size is None:
            raise ValueError(
                "The image processor gives images of different sizes, as it neither resizes to a fixed height and "
                'width nor crops; set size={"height": ..., "width": ...}, or do_center_crop=True with a crop_size.'
            )

    @classmethod
    def from_processor(cls, image_processor: Any) -> ImageGeometry:
        """Return the geometry of a fixed-size image processor of `transformers`, such as SigLIP's or CLIP's."""
        size = shortest_edge = crop_size = None
        if image_processor.do_resize:
            requested = {key: value for key, value in dict(image_processor.size).items() if value is not None}
            if requested.keys() == {"height", "width"}:
                size = (requested["height"], requested["width"])
            elif requested.keys() == {"shortest_edge"}:
                shortest_edge = requested["shortest_edge"]
            else:
                raise ValueError(
                    f"The image processor's size={requested} is not supported; use a size with height and width, "
                    "or with shortest_edge."
                )
        if image_processor.do_center_crop:
            crop_size = (image_processor.crop_size["height"], image_processor.crop_size["width"])
        if crop_size == size:
            crop_size = None
        return cls(size, shortest_edge, crop_size, int(image_processor.resample))

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of every resulting image, in pixels."""
        return next(size for size in (self.crop_size, self.size) if size is not None)

    def scaled_to(self, side: int) -> ImageGeometry:
        """Return the geometry whose images show the same section with `side` x `side` pixels."""
        ratio = side / self.output_size[0]
        size = self.size and (round(ratio * self.size[0]), round(ratio * self.size[1]))
        shortest_edge = self.shortest_edge and round(ratio * self.shortest_edge)
        return replace(self, size=size, shortest_edge=shortest_edge, crop_size=self.crop_size and (side, side))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of a `height` x `width` image after the resize, before the crop."""
        if self.size is not None:
            return self.size
        if self.shortest_edge is None:
            return height, width
        longest = int(self.shortest_edge * max(height, width) / min(height, width))
        return (longest, self.shortest_edge) if width <= height else (self.shortest_edge, longest)

    def empty(self, n: int) -> dict[str, np.ndarray]:
        """Return model inputs for `n` images, all zeros: `pixel_values` uint8 `[n, 3, H, W]`."""
        return {"pixel_values": np.zeros((n, 3, *self.output_size), dtype=np.uint8)}

    def encode(self, image: np.ndarray | Image.Image) -> dict[str, np.ndarray]:
        """Return the model inputs of one RGB image (uint8 `[H, W, 3]` or PIL): `pixel_values` uint8 `[3, H, W]`."""
        return {"pixel_values": _resize_and_crop(image, self)}


@dataclass(frozen=True)
class PatchGeometry:
    """Resize to at most `max_num_patches` patches at about the image's aspect ratio, as SigLIP 2 NaFlex does.

    Args:
        patch_size (`int`): Side of a patch in pixels.
        max_num_patches (`int`): Number of patches P to which every image is padded.
        resample (`int`, *optional*, defaults to `PIL.Image.Resampling.BILINEAR`): PIL's resampling filter.
    """

    patch_size: int
    max_num_patches: int
    resample: int = Image.Resampling.BILINEAR

    @classmethod
    def from_processor(cls, image_processor: Any) -> PatchGeometry:
        """Return the geometry of a `Siglip2ImageProcessor`."""
        if not image_processor.do_resize:
            raise ValueError(
                "The SigLIP 2 image processor has do_resize=False, and a batch needs patches: set do_resize=True."
            )
        return cls(image_processor.patch_size, image_processor.max_num_patches, int(image_processor.resample))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width, multiples of the patch size, of a `height` x `width` image after the resize."""
        return naflex_size(height, width, self.patch_size, self.max_num_patches)

    def empty(self, n: int) -> dict[str, np.ndarray]:
        """Return model inputs for `n` images, all black and of one patch.

        `pixel_values` uint8 `[n, P, patch_size * patch_size * 3]`, `pixel_attention_mask` int32 `[n, P]`,
        `spatial_shapes` int64 `[n, 2]`.
        """
        mask = np.zeros((n, self.max_num_patches), dtype=np.int32)
        mask[:, 0] = 1  # attention over no patches is NaN
        return {
            "pixel_values": np.zeros((n, self.max_num_patches, self.patch_size**2 * 3), dtype=np.uint8),
            "pixel_attention_mask": mask,
            "spatial_shapes": np.ones((n, 2), dtype=np.int64),
        }

    def encode(self, image: np.ndarray | Image.Image) -> dict[str, np.ndarray]:
        """Return the model inputs of one RGB image (uint8 `[H, W, 3]` or PIL), as rows of [`~PatchGeometry.empty`]."""
        pixels = np.array(image) if isinstance(image, Image.Image) else image
        height, width = self.resized(*pixels.shape[:2])
        pixels = resize(pixels, (height, width), self.resample)
        rows, columns, side = height // self.patch_size, width // self.patch_size, self.patch_size
        patches = pixels.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
        encoded = {name: array[0] for name, array in self.empty(1).items()}
        encoded["pixel_values"][: rows * columns] = patches.reshape(rows * columns, -1)
        encoded["pixel_attention_mask"][: rows * columns] = 1
        encoded["spatial_shapes"][:] = rows, columns
        return encoded


Geometry = ImageGeometry | PatchGeometry


def geometry_of(image_processor: Any) -> Geometry:
    """Return the geometry of an image processor of `transformers`.

    A [`PatchGeometry`] for SigLIP 2 NaFlex, an [`ImageGeometry`] for all others.
    """
    naflex = "spatial_shapes" in image_processor.model_input_names
    return (PatchGeometry if naflex else ImageGeometry).from_processor(image_processor)


def to_uint8(image: Image.Image, geometry: ImageGeometry) -> Tensor:
    """Resize and centre-crop an RGB image.

    Args:
        image (`PIL.Image.Image`): Image in mode RGB.
        geometry ([`ImageGeometry`]): Sizes of the resize and of the crop.

    Returns:
        `torch.Tensor`: uint8 `[3, H, W]`, neither rescaled nor normalised.

    Raises:
        BrokenImage: if the image is so long and narrow that it has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels after
            the resize.

    Example:

    ```python
    >>> import numpy as np
    >>> from jest_hf.images.pixels import ImageGeometry, decode_image, to_uint8
    >>> image = decode_image(np.full((40, 60), 255, dtype=np.uint8))  # or bytes, a path, a PIL image
    >>> to_uint8(image, ImageGeometry(size=(2, 2)))[0]
    tensor([[255, 255],
            [255, 255]], dtype=torch.uint8)

    ```
    """
    return torch.from_numpy(np.ascontiguousarray(_resize_and_crop(image, geometry)))


def naflex_patches(
    image: Image.Image, patch_size: int, max_num_patches: int, resample: int = Image.Resampling.BILINEAR
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Cut an RGB image into the patches of a SigLIP 2 NaFlex model (arXiv 2502.14786, section 2.4.2).

    The layout is that of `Siglip2ImageProcessor`: patches row by row, the pixels of a patch in the order row, column,
    channel.

    Args:
        image (`PIL.Image.Image`): Image in mode RGB.
        patch_size (`int`): Side of a patch in pixels.
        max_num_patches (`int`): Number of patches P after padding.
        resample (`int`, *optional*, defaults to `PIL.Image.Resampling.BILINEAR`): PIL's resampling filter.

    Returns:
        `tuple`: patches uint8 `[P, patch_size * patch_size * 3]`, mask int32 `[P]`, and the grid's (height, width) in
        patches.
    """
    encoded = PatchGeometry(patch_size, max_num_patches, resample).encode(image)
    rows, columns = encoded["spatial_shapes"].tolist()
    return (
        torch.from_numpy(encoded["pixel_values"]),
        torch.from_numpy(encoded["pixel_attention_mask"]),
        (rows, columns),
    )


def _resize_and_crop(image: np.ndarray | Image.Image, geometry: ImageGeometry) -> np.ndarray:
    """Return the resized and cropped image, uint8 `[3, H, W]`; of any order in memory."""
    pixels = np.array(image) if isinstance(image, Image.Image) else image
    height, width = geometry.resized(*pixels.shape[:2])
    if pixels.shape[:2] != (height, width):
        check_pixels(width, height)
        pixels = resize(pixels, (height, width), geometry.resample)
    if geometry.crop_size is not None and geometry.crop_size != (height, width):
        pixels = _crop(pixels, *geometry.crop_size)
    return pixels.transpose(2, 0, 1)


def _crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut out the centre; outside of the image there are zeros, as in transformers."""
    top, left = math.floor((pixels.shape[0] - height) / 2), math.floor((pixels.shape[1] - width) / 2)
    inside = pixels[max(top, 0) : top + height, max(left, 0) : left + width]
    if inside.shape[:2] == (height, width):
        return inside
    cropped = np.zeros((height, width, 3), dtype=np.uint8)
    above, before = max(-top, 0), max(-left, 0)
    cropped[above : above + inside.shape[0], before : before + inside.shape[1]] = inside
    return cropped


__all__ = [
    "BrokenImage",
    "Geometry",
    "ImageGeometry",
    "PatchGeometry",
    "decode_image",
    "decode_pixels",
    "geometry_of",
    "naflex_patches",
    "to_uint8",
]
