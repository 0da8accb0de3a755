# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images of all file formats are within 2 levels of those of `transformers` processors, and equal to them where PIL
resizes; broken images give one kind of error."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import ExifTags, Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.levit.image_processing_pil_levit import LevitImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.perceiver.image_processing_pil_perceiver import PerceiverImageProcessorPil
from transformers.models.poolformer.image_processing_pil_poolformer import PoolFormerImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from jest_hf.images.faithful import faithful_geometry
from jest_hf.images.pixels import (
    BrokenImage,
    ImageGeometry,
    PatchGeometry,
    decode_image,
    geometry_of,
    naflex_patches,
    to_uint8,
)
from jest_hf.images.resizing import MOST_LEVELS
from tests.helpers import encode, random_image


SIZES = [(16, 16), (24, 40), (41, 23), (7, 90), (5, 5), (100, 64)]  # height, width
RAW = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
PROCESSORS = {
    "siglip": SiglipImageProcessorPil(size={"height": 16, "width": 16}),
    "siglip_oblong": SiglipImageProcessorPil(size={"height": 12, "width": 20}, resample=Image.Resampling.BILINEAR),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "clip_odd_crop": CLIPImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": 15, "width": 13}),
    "clip_crop_larger": CLIPImageProcessorPil(size={"shortest_edge": 10}, crop_size={"height": 15, "width": 16}),
    "crop_only": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 12, "width": 12}),
}


def image_of(height: int, width: int, seed: int = 0) -> Image.Image:
    return random_image(height, width, np.random.default_rng(seed))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_within_2_levels_of_those_of_transformers(name, size):
    image = image_of(*size)
    expected = PROCESSORS[name](image, **RAW)["pixel_values"][0]
    got = to_uint8(decode_image(image), geometry_of(PROCESSORS[name]))
    assert got.dtype == torch.uint8 and got.is_contiguous()
    assert (got.int() - expected.int()).abs().max() <= MOST_LEVELS


@pytest.mark.parametrize("resample", [0, 1, 4, 5])  # nearest, Lanczos, box, Hamming
def test_pixels_of_other_filters_equal_those_of_transformers(resample):
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 20}, resample=resample)
    image = image_of(41, 23)
    expected = processor(image, **RAW)["pixel_values"][0]
    assert torch.equal(to_uint8(image, geometry_of(processor)).int(), expected.int())


def test_an_image_of_the_right_size_is_not_resampled():
    image = image_of(16, 16)
    got = to_uint8(image, ImageGeometry(size=(16, 16)))
    assert np.array_equal(got.permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize("size", SIZES)
def test_naflex_patches_are_within_2_levels_of_those_of_transformers(size):
    processor = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=20)
    image = image_of(*size)
    expected = processor(image, return_tensors="pt")
    patches, mask, shape = naflex_patches(image, patch_size=4, max_num_patches=20)
    assert patches.dtype == torch.uint8 and patches.shape == (20, 4 * 4 * 3)
    assert shape == tuple(expected["spatial_shapes"][0].tolist())
    assert torch.equal(mask, expected["pixel_attention_mask"][0])
    normalised = (patches / 255 - 0.5) / 0.5 * mask[:, None]
    levels = MOST_LEVELS / 255 / 0.5
    torch.testing.assert_close(normalised, expected["pixel_values"][0], atol=levels + 1e-5, rtol=0)


SQUARE = {"height": 16, "width": 16}
CROPPED = {"size": {"shortest_edge": 18}, "crop_size": SQUARE}


@pytest.mark.parametrize("processor", [*PROCESSORS.values(), ViTImageProcessorPil(do_rescale=False, image_std=[9] * 3),
                                       BitImageProcessorPil(**CROPPED), Siglip2ImageProcessorPil()])  # fmt: skip
def test_processors_that_do_what_their_settings_say_are_taken(processor):
    assert faithful_geometry(processor) == geometry_of(processor)


@pytest.mark.parametrize("processor", [MobileViTImageProcessorPil(**CROPPED), LevitImageProcessorPil(**CROPPED),
                                       PoolFormerImageProcessorPil(**CROPPED), EfficientNetImageProcessorPil(),
                                       PerceiverImageProcessorPil()])  # fmt: skip
def test_processors_with_steps_of_their_own_are_refused(processor):
    with pytest.raises(ValueError, match=f"{type(processor).__name__} has steps of its own"):
        faithful_geometry(processor)


def test_geometry_is_comparable_and_reads_the_processor():
    assert geometry_of(PROCESSORS["siglip"]) == ImageGeometry(size=(16, 16), resample=Image.Resampling.BICUBIC)
    assert geometry_of(PROCESSORS["clip"]) == ImageGeometry(shortest_edge=16, crop_size=(16, 16))
    assert geometry_of(Siglip2ImageProcessorPil(patch_size=4, max_num_patches=9)) == PatchGeometry(4, 9)
    assert len({geometry_of(PROCESSORS["siglip"]), ImageGeometry(size=(16, 16))}) == 1
    assert geometry_of(PROCESSORS["clip_odd_crop"]).output_size == (15, 13)


def test_a_crop_that_changes_nothing_is_no_difference():
    square = {"height": 16, "width": 16}
    cropping = CLIPImageProcessorPil(size=square, crop_size=square)
    assert geometry_of(cropping) == geometry_of(PROCESSORS["siglip"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_resize": False}, "do_center_crop"),
        ({"size": {"shortest_edge": 16}}, "do_center_crop"),
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, "longest_edge"),
    ],
)
def test_a_processor_without_one_size_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        geometry_of(SiglipImageProcessorPil(**options))


def test_naflex_without_resize_is_refused():
    with pytest.raises(ValueError, match="do_resize"):
        geometry_of(Siglip2ImageProcessorPil(do_resize=False))


def test_every_kind_of_source_gives_the_same_image(tmp_path):
    image = image_of(9, 14)
    array, data, path = np.asarray(image), encode(image), tmp_path / "image.png"
    path.write_bytes(data)
    sources = [
        image,
        data,
        bytearray(data),
        path,
        str(path),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
        {"bytes": data, "path": "elsewhere.png"},
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()),
    ]
    for source in sources:
        decoded = decode_image(source)
        assert decoded.mode == "RGB"
        assert np.array_equal(np.asarray(decoded), array)


def test_arrays_of_one_and_four_channels():
    grey = np.arange(6 * 5, dtype=np.uint8).reshape(6, 5)
    for source in (grey, grey[None], grey[..., None]):
        assert np.array_equal(np.asarray(decode_image(source)), np.repeat(grey[..., None], 3, axis=2))
    transparent = np.zeros((6, 5, 4), dtype=np.uint8)
    assert np.all(np.asarray(decode_image(transparent)) == 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_becomes_white_as_in_transformers(mode):
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    image.paste((200, 100, 50, 128), (0, 0, 4, 4))
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    got = np.asarray(decode_image(image))
    assert np.all(got[6, 6] == 255)
    # Earlier versions drop the alpha channel; Python 3.10 has 5.20 at most.
    if Version(transformers.__version__) >= Version("5.23"):
        expected = PROCESSORS["siglip"](image, do_resize=False, **RAW)["pixel_values"][0]
        assert np.array_equal(got.transpose(2, 0, 1), expected.numpy())


def test_a_palette_with_transparency_in_a_file():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((0, 0), 0)
    decoded = decode_image(encode(image, "PNG", transparency=bytes([0, 255])))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((3, 3)) == (200, 10, 10)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_equal_pils_conversion(mode):
    image = image_of(10, 12).convert(mode)
    assert np.array_equal(np.asarray(decode_image(image)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours():
    image = Image.new("RGB", (16, 16), (200, 60, 20))
    decoded = decode_image(encode(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.asarray(decoded).astype(int) - (200, 60, 20)).max() <= 3


def test_16_bit_grey_is_rescaled_not_clipped():
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    expected = np.round(levels / 257).astype(np.uint8)
    for image_format in ("PNG", "TIFF"):
        decoded = decode_image(encode(Image.fromarray(levels), image_format))
        assert np.array_equal(np.asarray(decoded)[..., 0], expected)


def test_32_bit_and_floating_point_grey_of_unknown_range_are_broken():
    with pytest.raises(BrokenImage, match="16-bit"):
        decode_image(Image.fromarray(np.array([[0, 100_000]], dtype=np.int32)))
    with pytest.raises(BrokenImage, match="floating"):
        decode_image(Image.fromarray(np.zeros((2, 2), dtype=np.float32)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scaled", [False, True])
def test_exif_orientation_is_applied(orientation, scaled):
    upright = Image.new("RGB", (96, 64), (255, 0, 0))
    upright.paste((0, 0, 255), (0, 0, 48, 32))  # blue top left quarter
    upright.paste((0, 255, 0), (48, 0, 96, 32))  # green top right quarter
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transpose of an upright image
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation in undo else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(stored, "JPEG", quality=95, exif=exif)
    decoded = decode_image(data, [ImageGeometry(size=(32, 48))], scaled_jpeg_decoding=scaled)
    width, height = decoded.size
    assert (width, height) == ((48, 32) if scaled else (96, 64))
    at = [decoded.getpixel((width // 6, height // 6)), decoded.getpixel((width * 5 // 6, height // 6))]
    assert np.argmax(at[0]) == 2 and np.argmax(at[1]) == 1
    assert np.argmax(decoded.getpixel((width // 6, height * 5 // 6))) == 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_metadata_do_not_spoil_an_image():
    image = image_of(16, 16)
    decoded = decode_image(encode(image, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff"))
    assert decoded.size == (16, 16)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((4, 4)) == (255, 0, 0)


def test_a_large_jpeg_is_decoded_at_reduced_size_with_scaled_jpeg_decoding():
    decode_scaled = partial(decode_image, scaled_jpeg_decoding=True)
    image = image_of(160, 240).resize((240, 160), Image.Resampling.LANCZOS)
    data = encode(image, "JPEG", quality=95)
    geometry = ImageGeometry(size=(40, 40))
    assert decode_image(data, [geometry]).size == (240, 160)
    assert decode_scaled(data).size == (240, 160)
    assert decode_scaled(data, [geometry]).size == (60, 40)
    assert decode_scaled(data, [geometry, ImageGeometry(size=(80, 80))]).size == (120, 80)  # both are covered
    assert decode_scaled(data, [ImageGeometry(size=(81, 40))]).size == (240, 160)  # not twice as large on both sides
    assert decode_scaled(data, [PatchGeometry(4, 64)]).size == (60, 40)


def test_reduced_decoding_changes_smooth_pixels_little():
    image = image_of(16, 16).resize((256, 256), Image.Resampling.BICUBIC)
    data, geometry = encode(image, "JPEG", quality=95), ImageGeometry(size=(48, 48))
    full = to_uint8(decode_image(data), geometry).int()
    reduced = to_uint8(decode_image(data, [geometry], scaled_jpeg_decoding=True), geometry).int()
    assert 0 < (full - reduced).abs().max() <= 16
    assert (full - reduced).abs().float().mean() < 2


def test_the_callers_image_is_left_alone():
    image = Image.open(io.BytesIO(encode(image_of(64, 64), "JPEG")))
    decode_image(image, [ImageGeometry(size=(8, 8))], scaled_jpeg_decoding=True)
    assert image.size == (64, 64) and image.mode == "RGB"


JPEG = encode(image_of(64, 64), "JPEG")
PNG = encode(image_of(64, 64), "PNG")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "no image"),
        (b"", "0 bytes"),
        ({"bytes": None, "path": None}, "no image"),
        ({"bytes": b"", "path": "x.png"}, "0 bytes"),
        ({}, "no image"),
        (b"not an image", "no format"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "decoded"),
        (PNG[:41] + b"\xff" * 40 + PNG[81:], "decoded"),
        (PNG[:16] + b"\x00\x00\x00\x00" + PNG[20:], "decoded|pixels|no format"),
        ("no/such/file.png", "cannot be read"),
        (".", "cannot be read"),
        (17, "int"),
        ([[0, 1]], "list"),
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "no pixels"),
        (np.zeros((7, 5, 6), dtype=np.uint8), "shape"),
        (np.zeros(4, dtype=np.uint8), "shape"),
        (np.zeros((1, 4, 4, 3), dtype=np.uint8), "shape"),
        (Image.new("RGB", (0, 5)), "no pixels"),
    ],
)
def test_broken_images_give_one_error_with_a_reason(source, reason):
    with pytest.raises(BrokenImage, match=reason):
        decode_image(source)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [3000, 1000])  # 4096 pixels: PIL warns at the first and raises at the second
def test_a_decompression_bomb_is_broken(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BrokenImage, match="pixels|[Bb]omb"):
        decode_image(PNG)


def test_a_sliver_is_broken_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    sliver = Image.new("RGB", (2000, 1))
    with pytest.raises(BrokenImage, match="pixels"):
        to_uint8(sliver, ImageGeometry(shortest_edge=16, crop_size=(16, 16)))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_not_the_images_fault_is_not_swallowed(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(error):
        decode_image(Image.new("RGB", (4, 4)))
