# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Decode images of all formats to upright 8-bit RGB.

PIL decodes, and simplejpeg decodes JPEGs where it is installed (`pip install 'jest_hf[jpeg]'`). Both use libjpeg-turbo
and give equal pixels; simplejpeg takes less time, and its pixels need no copy from PIL's memory. JPEGs that are grey,
CMYK, truncated or rotated by their metadata are PIL's.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Protocol, cast

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from jest_hf.images.reading import BrokenImage, encoded_of, read_encoded


try:
    import simplejpeg
except ImportError:
    simplejpeg = None


logger = logging.getLogger(__name__)

_UPRIGHT = {  # EXIF orientation -> the transformation to upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width
_WHITE = (255, 255, 255, 255)
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")


@dataclass(frozen=True)
class DecodedImage:
    """An image that is decoded and resized, perhaps long ago: an image cache has these.

    Args:
        inputs (mapping, *optional*): The model inputs of the image by geometry, as its `encode` returns them; `None`
            for an image that could not be decoded.
    """

    inputs: Mapping[Any, Mapping[str, np.ndarray]] | None

    def encode(self, geometries: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the model inputs of the image in some geometries, by prefix of the names of the inputs.

        Raises:
            BrokenImage: for an image that could not be decoded.
        """
        if self.inputs is None:
            raise BrokenImage("the image could not be decoded when the image cache was made")
        return {prefix + name: array for prefix, one in geometries.items() for name, array in self.inputs[one].items()}


class Shape(Protocol):
    """Gives the size that an image is resized to: an `ImageGeometry` or a `PatchGeometry`."""

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of a `height` x `width` image after the resize."""
        ...


def decode_image(source: Any, geometries: Iterable[Shape] = (), *, scaled_jpeg_decoding: bool = False) -> Image.Image:
    """Decode to an upright 8-bit RGB image.

    Transparent pixels are blended with white, as in `transformers`. 16-bit grey is rescaled to 8 bits (PIL would clip
    it), EXIF orientation is applied, and of an animation the first frame is used.

    Args:
        source (`PIL.Image.Image`, `bytes`, path, `{"bytes", "path"}` dict, uint8 array or tensor): The image. Arrays
            are `[H, W]`, `[H, W, C]` or `[C, H, W]` with C in 1, 3, 4; if both orders are possible, channels are last.
            A dict may have a `"mode"`, the PIL mode that the image is converted to first: that of the data's feature,
            such as `datasets.Image(mode="L")`.
        geometries (iterable of [`~jest_hf.images.pixels.Geometry`], *optional*): What the image is decoded for;
            matters to `scaled_jpeg_decoding` alone.
        scaled_jpeg_decoding (`bool`, *optional*, defaults to `False`): Whether to decode a JPEG at the smallest of 1,
            1/2, 1/4 and 1/8 of its size that is enough, in height and width, for all `geometries`. This is faster and
            changes pixels by up to 40 of 255 levels, 1.5 on average, as the JPEG decoder averages pixels in place of a
            part of the resize.

    Returns:
        `PIL.Image.Image`: The image in mode RGB.

    Raises:
        BrokenImage: if there is no usable image in `source`, or the image has more than `PIL.Image.MAX_IMAGE_PIXELS`
            pixels (a decompression bomb).
    """
    return cast(Image.Image, _decode(source, geometries if scaled_jpeg_decoding else (), fast=False))


def decode_pixels(source: Any, geometries: Iterable[Shape] = (), *, scaled_jpeg_decoding: bool = False) -> np.ndarray:
    """Decode to the pixels of an upright 8-bit RGB image, and JPEGs with simplejpeg where it is installed.

    Args:
        source, geometries, scaled_jpeg_decoding: As in [`decode_image`].

    Returns:
        `np.ndarray`: uint8 `[H, W, 3]`, the pixels of the image that [`decode_image`] returns.

    Raises:
        BrokenImage: as [`decode_image`].

    Example:

    ```python
    >>> import numpy as np
    >>> from jest_hf.images.decoding import decode_pixels
    >>> decode_pixels(np.full((40, 60), 255, dtype=np.uint8)).shape  # or bytes, a path, a PIL image
    (40, 60, 3)

    ```
    """
    found = _decode(source, geometries if scaled_jpeg_decoding else (), fast=simplejpeg is not None)
    return found if isinstance(found, np.ndarray) else np.array(found)


@lru_cache(maxsize=1)
def log_jpeg_decoder() -> None:
    """Log once which library decodes JPEGs."""
    if simplejpeg is None:
        logger.info("PIL decodes JPEGs; simplejpeg is faster: pip install 'jest_hf[jpeg]'.")
    else:
        logger.info("simplejpeg %s decodes JPEGs.", version("simplejpeg"))


def check_pixels(width: int, height: int) -> None:
    """Raise [`BrokenImage`] above PIL's limit; PIL itself warns there and raises at twice the limit."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise BrokenImage(
            f"{width} x {height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS={Image.MAX_IMAGE_PIXELS}"
        )


def _decode(source: Any, geometries: Iterable[Shape], *, fast: bool) -> Image.Image | np.ndarray:
    """Return the image or, only with `fast`, perhaps its pixels. A JPEG is decoded at reduced size if there are
    `geometries`.
    """
    if isinstance(source, DecodedImage):
        raise TypeError(
            "an image of an image cache has the sizes of the models only, and cannot be decoded once more; leave "
            "image_cache out where a collator of your own reads the images."
        )
    source = encoded_of(_array_of(source) if isinstance(source, Tensor) else source)
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source))
    mode = source.get("mode") if isinstance(source, Mapping) else None
    data = None if isinstance(source, Image.Image) else read_encoded(source)
    try:
        image = source if data is None else Image.open(io.BytesIO(data), formats=_formats())
        _check_size(image)
        if data is not None and image.format in ("JPEG", "MPO"):  # not an image of the caller, as draft() changes it
            full_size = image.size
            _scale_while_decoding(image, geometries)
            if (
                fast
                and mode in (None, "RGB")
                and image.size == full_size
                and (pixels := _by_simplejpeg(image, data)) is not None
            ):
                return pixels
        image.load()  # before the metadata: for these PIL may load the image too, and `_orientation` ignores errors
        orientation = _orientation(image)
        image = _to_rgb(image if mode in (None, image.mode) else image.convert(mode))
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    except (BrokenImage, MemoryError):
        raise
    except Exception as error:  # PIL's decoders raise errors of many types on broken data
        raise broken_by(error) from error


def open_image(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to a PIL image of its own mode, which may lie on its side.

    Raises:
        BrokenImage: as [`decode_image`].
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        _check_size(image)
        image.load()
    except (BrokenImage, MemoryError):
        raise
    except Exception as error:
        raise broken_by(error) from error
    return image


def broken_by(error: Exception) -> BrokenImage:
    """Return what to raise in place of an error of PIL."""
    if isinstance(error, UnidentifiedImageError):
        return BrokenImage(f"the image is in no format that is read here ({', '.join(_formats())})")
    return BrokenImage(f"the image cannot be decoded ({type(error).__name__}: {error})")


def _by_simplejpeg(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return the pixels of an upright RGB JPEG; `None` for all others and those that simplejpeg finds damaged.

    PIL decides what is to become of these: it decodes some damaged files, and refuses others.
    """
    if image.mode != "RGB" or _orientation(image) in _UPRIGHT:
        return None
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data)
    except ValueError:
        return None
    return pixels if pixels.shape == (image.height, image.width, 3) else None


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The formats that this Pillow can read, of those in which images are published.

    Others are left out: for some, Pillow starts programs (Ghostscript for EPS), or has rarely tested decoders.
    """
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _array_of(tensor: Tensor) -> np.ndarray:
    try:
        array: np.ndarray = tensor.numpy(force=True)
    except (TypeError, RuntimeError) as error:  # numpy has no bfloat16, and no sparse or quantized tensors
        kind = f"{str(tensor.layout).removeprefix('torch.')} tensor of {str(tensor.dtype).removeprefix('torch.')}"
        raise BrokenImage(f"a {kind} is not an image; make it a dense one of uint8") from error
    return array


def _from_array(array: np.ndarray) -> Image.Image:
    """Return the PIL image of a uint8 array."""
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
    check_pixels(width, height)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if there is none or the metadata are damaged."""
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation
    except MemoryError:
        raise
    except Exception:
        return 1


def _scale_while_decoding(image: Image.Image, geometries: Iterable[Shape]) -> None:
    """Set a JPEG to decode at the smallest of 1, 1/2, 1/4 and 1/8 of its size that is enough for all geometries."""
    sideways = _orientation(image) in _SIDEWAYS
    width, height = reversed(image.size) if sideways else image.size
    targets = [geometry.resized(height, width) for geometry in geometries]
    if targets:
        target_height, target_width = (max(sides) for sides in zip(*targets, strict=True))
        image.draft(None, (target_height, target_width) if sideways else (target_width, target_height))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB."""
    if image.mode.startswith("I"):
        image = _from_16_bits(np.asarray(image))
    if image.mode == "F":
        raise BrokenImage("the pixels are floating-point numbers of unknown range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(levels: np.ndarray) -> Image.Image:
    """Return the 8-bit grey image of 16-bit levels, rounded: 65535 = 257 * 255."""
    if levels.min() < 0 or levels.max() > 65535:
        raise BrokenImage(f"grey levels of {levels.min()} to {levels.max()} are not those of a 16-bit image")
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))


__all__ = ["BrokenImage", "DecodedImage", "Shape", "check_pixels", "decode_image", "decode_pixels", "log_jpeg_decoder"]
