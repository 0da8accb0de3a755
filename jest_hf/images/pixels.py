# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images from whatever a row holds to uint8 pixels at the size a model wants.

Three steps, each a pure function: [`decode_image`] (bytes, path, array or PIL image to RGB), [`to_uint8`] (resize and
centre crop) and, for SigLIP 2 NaFlex, [`naflex_patches`]. They give what the PIL image processors of `transformers`
give before rescaling and normalising; those two wait until the pixels are on the device, so that a super-batch crosses
the bus as uint8. A geometry says what an image processor does to shape, and nothing about colour: two models with
equal geometries share the work and the pixels.

Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where that still covers the target. It is about three times as
fast, and the price is a small difference in the pixels: the JPEG decoder's own averaging does part of the resizing.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches


_UPRIGHT = {  # EXIF orientation -> what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # the ones that swap height and width
_WHITE = (255, 255, 255, 255)

naflex_size = lru_cache(maxsize=4096)(get_image_size_for_max_num_patches)  # a binary search in Python: 40 µs


class BrokenImage(ValueError):
    """An image that cannot be used; the message says why."""


@dataclass(frozen=True)
class ImageGeometry:
    """
    What an image processor does to an image's shape: resize, then centre crop.

    Args:
        size (`tuple[int, int]`, *optional*): Height and width to resize to, in pixels.
        shortest_edge (`int`, *optional*): Length to resize the shorter side to, in pixels, keeping the aspect ratio.
        crop_size (`tuple[int, int]`, *optional*): Height and width of the centre crop, in pixels; smaller images are
            padded with zeros.
        resample (`int`, *optional*, defaults to `PIL.Image.Resampling.BICUBIC`): PIL's resampling filter. PIL always
            antialiases.

    Raises:
        ValueError: If images of different shapes would keep different shapes: a batch needs one.
    """

    size: tuple[int, int] | None = None
    shortest_edge: int | None = None
    crop_size: tuple[int, int] | None = None
    resample: int = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        if self.size is None and self.crop_size is None:
            raise ValueError(
                "The image processor gives images of different sizes (it neither resizes to a fixed height and width "
                'nor crops); set size={"height": ..., "width": ...}, or do_center_crop=True with a crop_size.'
            )

    @classmethod
    def from_processor(cls, image_processor: BaseImageProcessor) -> ImageGeometry:
        """Read the geometry off a fixed-size image processor of `transformers`, such as SigLIP's or CLIP's."""
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
        """Height and width of every image that comes out."""
        return self.crop_size or self.size

    def scaled_to(self, side: int) -> ImageGeometry:
        """The same view of an image, resized and cropped in proportion, of `side` x `side` pixels."""
        ratio = side / self.output_size[0]
        size = self.size and (round(ratio * self.size[0]), round(ratio * self.size[1]))
        shortest_edge = self.shortest_edge and round(ratio * self.shortest_edge)
        return replace(self, size=size, shortest_edge=shortest_edge, crop_size=self.crop_size and (side, side))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a `height` x `width` image after the resize, before the crop."""
        if self.size is not None:
            return self.size
        if self.shortest_edge is None:
            return height, width
        longest = int(self.shortest_edge * max(height, width) / min(height, width))
        return (longest, self.shortest_edge) if width <= height else (self.shortest_edge, longest)

    def empty(self, n: int) -> dict[str, np.ndarray]:
        """Model inputs for `n` images, all zeros: `pixel_values` uint8 [n, 3, H, W]."""
        return {"pixel_values": np.zeros((n, 3, *self.output_size), dtype=np.uint8)}

    def encode(self, image: Image.Image) -> dict[str, np.ndarray]:
        """Model inputs of one RGB image: `pixel_values` uint8 [3, H, W]."""
        return {"pixel_values": _resize_and_crop(image, self)}


@dataclass(frozen=True)
class PatchGeometry:
    """
    What SigLIP 2's NaFlex image processor does: resize to at most `max_num_patches` patches at (about) the image's own
    aspect ratio.

    Args:
        patch_size (`int`): Side of a patch in pixels.
        max_num_patches (`int`): Number of patches P that every image is padded to.
        resample (`int`, *optional*, defaults to `PIL.Image.Resampling.BILINEAR`): PIL's resampling filter.
    """

    patch_size: int
    max_num_patches: int
    resample: int = Image.Resampling.BILINEAR

    @classmethod
    def from_processor(cls, image_processor: BaseImageProcessor) -> PatchGeometry:
        """Read the geometry off a `Siglip2ImageProcessor`."""
        if not image_processor.do_resize:
            raise ValueError(
                "The SigLIP 2 image processor has do_resize=False; a batch needs its patches: set do_resize=True."
            )
        return cls(image_processor.patch_size, image_processor.max_num_patches, int(image_processor.resample))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, multiples of the patch size, that a `height` x `width` image is resized to."""
        return naflex_size(height, width, self.patch_size, self.max_num_patches)

    def empty(self, n: int) -> dict[str, np.ndarray]:
        """
        Model inputs for `n` images, all black and of one patch: `pixel_values` uint8 [n, P, patch_size * patch_size *
        3], `pixel_attention_mask` int32 [n, P], `spatial_shapes` int64 [n, 2].
        """
        mask = np.zeros((n, self.max_num_patches), dtype=np.int32)
        mask[:, 0] = 1  # attention over no patch at all would be NaN
        return {
            "pixel_values": np.zeros((n, self.max_num_patches, self.patch_size**2 * 3), dtype=np.uint8),
            "pixel_attention_mask": mask,
            "spatial_shapes": np.ones((n, 2), dtype=np.int64),
        }

    def encode(self, image: Image.Image) -> dict[str, np.ndarray]:
        """Model inputs of one RGB image, as rows of [`~PatchGeometry.empty`]."""
        height, width = self.resized(image.height, image.width)
        if image.size != (width, height):
            image = image.resize((width, height), self.resample)
        rows, columns, side = height // self.patch_size, width // self.patch_size, self.patch_size
        patches = np.asarray(image).reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
        encoded = {name: array[0] for name, array in self.empty(1).items()}
        encoded["pixel_values"][: rows * columns] = patches.reshape(rows * columns, -1)
        encoded["pixel_attention_mask"][: rows * columns] = 1
        encoded["spatial_shapes"][:] = rows, columns
        return encoded


Geometry = ImageGeometry | PatchGeometry


def geometry_of(image_processor: BaseImageProcessor) -> Geometry:
    """The geometry of an image processor of `transformers`: patches for SigLIP 2 NaFlex, one size for all others."""
    naflex = "spatial_shapes" in image_processor.model_input_names
    return (PatchGeometry if naflex else ImageGeometry).from_processor(image_processor)


def decode_image(source: Any, geometries: Iterable[Geometry] = ()) -> Image.Image:
    """
    Decode to an upright 8-bit RGB image.

    Transparency is flattened on white, as `transformers` does it. 16-bit grey is rescaled to 8 bits (PIL alone would
    clip it), EXIF orientation is applied, of an animation the first frame is taken.

    Args:
        source (`PIL.Image.Image`, `bytes`, path, `{"bytes", "path"}` dict, uint8 array or tensor): The image. Arrays
            are [H, W], [H, W, C] or [C, H, W] with C in 1, 3, 4; where both readings are possible, channels are last.
        geometries (iterable of [`ImageGeometry`] or [`PatchGeometry`], *optional*): What the image is decoded for. A
            JPEG at least twice as large as all of them on both sides is decoded at reduced size.

    Returns:
        `PIL.Image.Image`: The image in mode RGB.

    Raises:
        BrokenImage: If there is no usable image in `source`, or it is so large that it looks like a decompression
            bomb.
    """
    if isinstance(source, Tensor):
        source = source.numpy(force=True)
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    data = None if isinstance(source, Image.Image) else _read(source)
    try:
        image = source if data is None else Image.open(io.BytesIO(data))
        _check_size(image)
        if data is not None and image.format in ("JPEG", "MPO"):  # draft() changes the object: never the caller's own
            _scale_while_decoding(image, geometries)
        image.load()  # ahead of the metadata: to look for a PNG's, PIL would load it and its error would be lost there
        orientation = _orientation(image)
        image = _to_rgb(image)
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    except (BrokenImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage("the image is in no format that PIL can read") from error
    except Exception as error:  # PIL's decoders raise nearly every type there is on broken data
        raise BrokenImage(f"the image cannot be decoded ({type(error).__name__}: {error})") from error


def to_uint8(image: Image.Image, geometry: ImageGeometry) -> Tensor:
    """
    Resize and centre-crop an RGB image.

    Args:
        image (`PIL.Image.Image`): Image in mode RGB.
        geometry ([`ImageGeometry`]): What to do.

    Returns:
        `torch.Tensor`: uint8 [3, H, W], neither rescaled nor normalised.

    Raises:
        BrokenImage: If the image is so long and narrow that resizing its shorter side would exhaust the memory.
    """
    return torch.from_numpy(np.ascontiguousarray(_resize_and_crop(image, geometry)))


def naflex_patches(
    image: Image.Image, patch_size: int, max_num_patches: int, resample: int = Image.Resampling.BILINEAR
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """
    Cut an RGB image into the patches of a SigLIP 2 NaFlex model (arXiv 2502.14786, section 2.4.2), laid out as
    `Siglip2ImageProcessor` lays them out: row by row, pixels in [patch row, patch column, channel] order.

    Args:
        image (`PIL.Image.Image`): Image in mode RGB.
        patch_size (`int`): Side of a patch in pixels.
        max_num_patches (`int`): Number of patches P after padding.
        resample (`int`, *optional*, defaults to `PIL.Image.Resampling.BILINEAR`): PIL's resampling filter.

    Returns:
        `tuple`: patches uint8 [P, patch_size * patch_size * 3], mask int32 [P], and the grid's (height, width) in
            patches.
    """
    encoded = PatchGeometry(patch_size, max_num_patches, resample).encode(image)
    rows, columns = encoded["spatial_shapes"].tolist()
    return (
        torch.from_numpy(encoded["pixel_values"]),
        torch.from_numpy(encoded["pixel_attention_mask"]),
        (rows, columns),
    )


def _read(source: Any) -> bytes:
    """The encoded bytes behind `source`."""
    if isinstance(source, Mapping):
        data, path = source.get("bytes"), source.get("path")
        source = path if data is None else data
    if source is None:
        raise BrokenImage("there is no image (None)")
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise BrokenImage("there is no image (0 bytes)")
        return source
    if not isinstance(source, str | PathLike):
        raise BrokenImage(f"a {type(source).__name__} is not an image")
    try:
        return Path(source).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise BrokenImage(f"the image cannot be read ({error})") from error


def _from_array(array: np.ndarray) -> Image.Image:
    """PIL image of a uint8 array."""
    if array.dtype != np.uint8:
        raise BrokenImage(f"an array of {array.dtype} is not an image; make it uint8")
    if array.size == 0:
        raise BrokenImage(f"an array of shape {array.shape} has no pixels")
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise BrokenImage(f"an array of shape {array.shape} is not an image; make it [H, W], [H, W, C] or [C, H, W]")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width == 0 or height == 0:
        raise BrokenImage(f"a {width} x {height} image has no pixels")
    _check_pixels(width, height)


def _check_pixels(width: int, height: int) -> None:
    """PIL warns at its limit and raises at twice that; here its limit is the limit."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise BrokenImage(
            f"{width} x {height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS={Image.MAX_IMAGE_PIXELS}"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 (upright) where there is none, or the metadata are damaged: the image may yet be sound."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:
        return 1


def _scale_while_decoding(image: Image.Image, geometries: Iterable[Geometry]) -> None:
    """Ask the JPEG decoder for the smallest of its sizes (1, 1/2, 1/4, 1/8) that still covers every geometry."""
    sideways = _orientation(image) in _SIDEWAYS
    width, height = reversed(image.size) if sideways else image.size
    targets = [geometry.resized(height, width) for geometry in geometries]
    if targets:
        target_height, target_width = (max(sides) for sides in zip(*targets, strict=True))
        image.draft(None, (target_height, target_width) if sideways else (target_width, target_height))


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image in any mode."""
    if image.mode.startswith("I"):
        image = _from_16_bits(np.asarray(image))
    if image.mode == "F":
        raise BrokenImage("the pixels are floating-point numbers of unknown range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(levels: np.ndarray) -> Image.Image:
    """8-bit grey image of 16-bit levels, rounded: 65535 = 257 * 255."""
    if levels.min() < 0 or levels.max() > 65535:
        raise BrokenImage(f"grey levels of {levels.min()} to {levels.max()} are not those of a 16-bit image")
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _resize_and_crop(image: Image.Image, geometry: ImageGeometry) -> np.ndarray:
    """uint8 [3, H, W] view of the resized and cropped image (strided: channels are last in memory)."""
    height, width = geometry.resized(image.height, image.width)
    if image.size != (width, height):
        _check_pixels(width, height)
        image = image.resize((width, height), geometry.resample)
    if geometry.crop_size is not None and geometry.crop_size != (height, width):
        crop_height, crop_width = geometry.crop_size
        top, left = math.floor((height - crop_height) / 2), math.floor((width - crop_width) / 2)
        image = image.crop(
            (left, top, left + crop_width, top + crop_height)
        )  # outside of the image PIL gives zeros, as HF does
    return np.asarray(image).transpose(2, 0, 1)
