# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""simplejpeg, where it is installed, gives PIL's pixels, and leaves to PIL what is not a plain JPEG."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
from PIL import ExifTags, Image

from jest_hf import JESTDataCollator
from jest_hf.images import decoding
from jest_hf.images.decoding import BrokenImage, decode_image, decode_pixels, log_jpeg_decoder
from jest_hf.images.pixels import ImageGeometry
from tests.helpers import encode, random_image, tiny_siglip_processor


needs_simplejpeg = pytest.mark.skipif(decoding.simplejpeg is None, reason="simplejpeg is not installed")


@pytest.fixture
def calls(monkeypatch):
    """Count what simplejpeg decodes."""
    made = []
    decode = decoding.simplejpeg.decode_jpeg

    def counted(data, **options):
        pixels = decode(data, **options)
        made.append(pixels.shape)
        return pixels

    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", counted)
    return made


def picture(height: int = 90, width: int = 131) -> Image.Image:
    noise = random_image(height // 3, width // 3, np.random.default_rng(0))
    return noise.resize((width, height), Image.Resampling.BICUBIC)


@needs_simplejpeg
@pytest.mark.parametrize("options", [
    {"quality": 95, "subsampling": "4:4:4"}, {"quality": 75, "subsampling": "4:2:2"}, {"quality": 30},
    {"quality": 90, "progressive": True}, {"quality": 90, "keep_rgb": True}, {"quality": 90, "comment": b"a comment"},
    {"quality": 90, "restart_marker_blocks": 3},
], ids=str)  # fmt: skip
def test_pixels_of_jpegs_equal_pils(calls, options):
    data = encode(picture(), "JPEG", **options)
    assert np.array_equal(decode_pixels(data), np.asarray(decode_image(data)))
    assert calls == [(90, 131, 3)]


@needs_simplejpeg
@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda data: {"bytes": data, "path": None}])
def test_every_kind_of_bytes_is_decoded(calls, make):
    data = encode(picture(), "JPEG")
    assert np.array_equal(decode_pixels(make(data)), np.asarray(decode_image(data)))
    assert len(calls) == 1


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(picture(), "JPEG", exif=exif)


@needs_simplejpeg
@pytest.mark.parametrize("data", [
    *map(rotated, range(2, 9)), encode(picture().convert("L"), "JPEG"), encode(picture().convert("CMYK"), "JPEG"),
    encode(picture(), "PNG"), encode(picture(), "WEBP"),
])  # fmt: skip
def test_other_images_are_pils(calls, data):
    pixels = decode_pixels(data)
    assert np.array_equal(pixels, np.asarray(decode_image(data))) and pixels.flags.writeable
    assert not calls


@needs_simplejpeg
def test_an_upright_image_with_metadata_is_decoded(calls):
    assert np.array_equal(decode_pixels(rotated(1)), np.asarray(decode_image(rotated(1))))
    assert len(calls) == 1


JPEG = encode(picture(), "JPEG")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_jpeg_is_broken(kept):
    with pytest.raises(BrokenImage, match="[Tt]runcated"):
        decode_pixels(JPEG[: int(kept * len(JPEG))])


def test_a_damaged_jpeg_that_pil_decodes_is_pils():
    damaged = bytearray(JPEG)
    damaged[len(JPEG) * 2 // 3 : len(JPEG) * 2 // 3 + 20] = b"\x55" * 20
    assert np.array_equal(decode_pixels(damaged), np.asarray(decode_image(damaged)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_jpeg_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(BrokenImage, match="more than PIL.Image.MAX_IMAGE_PIXELS=10000"):
        decode_pixels(JPEG)


@pytest.mark.parametrize("scaled", [False, True])
def test_pixels_for_a_geometry_are_those_of_the_image(scaled):
    data, geometries = encode(picture(), "JPEG"), [ImageGeometry(size=(40, 40))]
    pixels = decode_pixels(data, geometries, scaled_jpeg_decoding=scaled)
    assert pixels.shape == ((45, 66, 3) if scaled else (90, 131, 3))
    assert np.array_equal(pixels, np.asarray(decode_image(data, geometries, scaled_jpeg_decoding=scaled)))


@needs_simplejpeg
def test_a_jpeg_that_is_decoded_at_reduced_size_is_decoded_once(calls):
    decode_pixels(JPEG, [ImageGeometry(size=(40, 40))], scaled_jpeg_decoding=True)
    assert not calls
    decode_pixels(JPEG, [ImageGeometry(size=(80, 80))], scaled_jpeg_decoding=True)  # too small to be scaled
    assert len(calls) == 1


def test_without_simplejpeg_pil_decodes(monkeypatch):
    monkeypatch.setattr(decoding, "simplejpeg", None)
    expected = np.asarray(Image.open(io.BytesIO(JPEG)))
    assert np.array_equal(decode_pixels(JPEG), expected)


@pytest.mark.parametrize("installed", [False, pytest.param(True, marks=needs_simplejpeg)])
def test_the_decoder_is_logged_once(monkeypatch, caplog, installed):
    if not installed:
        monkeypatch.setattr(decoding, "simplejpeg", None)
    log_jpeg_decoder.cache_clear()
    with caplog.at_level(logging.INFO, "jest_hf.images.decoding"):
        for _ in range(2):
            JESTDataCollator(tiny_siglip_processor())
    log_jpeg_decoder.cache_clear()
    assert len(caplog.messages) == 1
    assert ("simplejpeg 1" in caplog.text) == installed and ("jest_hf[jpeg]" in caplog.text) != installed
