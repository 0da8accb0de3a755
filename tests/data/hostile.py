# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Makes rows as bad as data can be, with what has to become of each: its pixels, or the reason why it is skipped."""

from __future__ import annotations

import base64
import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, features

from tests.helpers import encode


HEIGHT, WIDTH = 12, 16
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
PIXELS = np.asarray(Image.fromarray(PIXELS).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
PICTURE = Image.fromarray(PIXELS)
PNG = encode(PICTURE)
GOOD = {"image": {"bytes": PNG, "path": None}, "text": "a red star", "label": 1}


class Fragile(torch.utils.data.Dataset):
    """Rows, some of which raise."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.rows[index], Exception):
            raise self.rows[index]
        return self.rows[index]


@dataclass
class Case:
    """A row, and what has to become of it.

    Args:
        name (`str`): What is hostile.
        row: The row, or an exception that reading it raises, or no row at all.
        reason (`str`, *optional*): A pattern of the reason for which the row is skipped; `None` for a good row.
        pixels (`np.ndarray`, *optional*): The RGB pixels of a good row, uint8 `[H, W, 3]`.
        caption (`str`, *optional*): The caption of a good row.
        label (`int`, *optional*): The class of a good row; `None` for rows without a label, as most here.
        either (`bool`): Whether a good row would be fine too: PIL reads what is there of some damaged files.
        warns (`str`): A pattern of what Python warns of while a good row is read.
    """

    name: str
    row: Any
    reason: str | None = None
    pixels: np.ndarray | None = None
    caption: str = "a red star"
    label: int = 1
    either: bool = False
    warns: str = "never"


def image_case(name: str, image: Any, reason: str | None = None, **options: Any) -> Case:
    if reason is None and not options.get("either"):
        options.setdefault("pixels", PIXELS)
    return Case(f"image: {name}", {**GOOD, "image": image}, reason, **options)


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO")
OTHER_FORMATS = ("EPS", "PDF", "TGA", "PCX", "SGI", "IM", "ICNS", "DDS", "XBM", "MSP", "SPIDER")
NO_FORMAT = "in no format that is read here"
BROKEN = "in no format|cannot be decoded|pixels are|no pixels"


def damaged_files() -> Iterator[Case]:
    for fmt in FORMATS:
        data = encode(PICTURE, fmt)
        yield image_case(f"{fmt}, 6 bytes", data[:6], BROKEN)
        for share in (0.3, 0.7, 0.98):
            yield image_case(f"{fmt}, {share:.0%}", data[: int(share * len(data))], BROKEN, either=True)
        holed = bytearray(data)
        holed[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
        yield image_case(f"{fmt}, a hole", bytes(holed), BROKEN, either=True)
    for fmt in OTHER_FORMATS:
        mode = {"XBM": "1", "MSP": "1", "SPIDER": "F"}.get(fmt, "RGB")
        yield image_case(f"{fmt}, not on the list", encode(PICTURE.convert(mode), fmt), NO_FORMAT)
    generator = np.random.default_rng(1)
    for number in range(8):
        yield image_case(f"random bytes {number}", generator.bytes(50 * number + 1), NO_FORMAT)
        changed = bytearray(PNG)
        changed[int(generator.integers(16, 29))] ^= 0xFF  # in the header, which has a checksum
        yield image_case(f"changed header {number}", bytes(changed), BROKEN)
    for name, data in {
        "HTML": b"<html>404 not found</html>",
        "JSON": b'{"error": "gone"}',
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "a script": b"#!/bin/sh\nrm -rf x",
        "gzip of a PNG": gzip.compress(PNG),
        "a pickle": b"\x80\x04K\x01.",
        "base64 as bytes": base64.b64encode(PNG),
        "UTF-16": "PNG".encode("utf-16"),
        "one zero": b"\0",
        "zeros": bytes(5000),
    }.items():
        yield image_case(name, data, NO_FORMAT)
    yield image_case("no bytes", b"", "no image .0 bytes")
    yield image_case("PNG and junk", PNG + b"junk" * 50)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def sizes() -> Iterator[Case]:
    for width, height in ((30_000, 30_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (100_000, 1000)):
        yield image_case(f"bomb {width} x {height}", bomb(width, height), "pixels are more than|cannot be decoded")
    yield image_case("bomb of a size of zero", bomb(0, 5), BROKEN)
    for width, height in ((1, 1), (1, 20_000), (20_000, 1), (3, 700)):
        pixels = np.full((height, width, 3), (10, 200, 30), dtype=np.uint8)
        yield image_case(f"{width} x {height}", encode(Image.fromarray(pixels)), pixels=pixels)


def modes() -> Iterator[Case]:
    grey = np.asarray(PICTURE.convert("L"))
    greys = np.repeat(grey[..., None], 3, axis=2)
    yield image_case("L", encode(PICTURE.convert("L")), pixels=greys)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    yield image_case("16 bits", encode(deep), pixels=greys)
    yield image_case("16 bits, TIFF", encode(deep, "TIFF"), pixels=greys)
    yield image_case("32 bits", encode(Image.fromarray(grey.astype(np.int32) * 257), "TIFF"), pixels=greys)
    wide = Image.fromarray(grey.astype(np.int32) * 70_000)
    yield image_case("32 bits that are no 16", encode(wide, "TIFF"), "not those of a 16-bit image")
    yield image_case("floats", encode(Image.fromarray(grey.astype(np.float32)), "TIFF"), "floating-point numbers")
    bits = PICTURE.convert("1")
    yield image_case("1 bit", encode(bits), pixels=np.asarray(bits.convert("RGB")))
    palette = PICTURE.quantize(7)
    yield image_case("palette", encode(palette), pixels=np.asarray(palette.convert("RGB")))
    yield image_case("GIF", encode(palette, "GIF"), pixels=np.asarray(palette.convert("RGB")))
    holes = np.where(np.asarray(palette)[..., None] == 3, 255, np.asarray(palette.convert("RGB"))).astype(np.uint8)
    yield image_case("palette with transparency", encode(palette, transparency=3), pixels=holes)
    yield image_case("GIF with transparency", encode(palette, "GIF", transparency=3), pixels=holes)
    colour = tuple(int(value) for value in PIXELS[0, 0])
    keyed = np.where((PIXELS == PIXELS[0, 0]).all(axis=2)[..., None], 255, PIXELS).astype(np.uint8)
    yield image_case("a transparent colour", encode(PICTURE, transparency=colour), pixels=keyed)
    for alpha, name in ((255, "opaque"), (0, "invisible")):
        layered = np.dstack([PIXELS, np.full((HEIGHT, WIDTH), alpha, dtype=np.uint8)])
        expected = PIXELS if alpha else np.full_like(PIXELS, 255)
        yield image_case(f"RGBA, {name}", encode(Image.fromarray(layered)), pixels=expected)
    light = Image.fromarray(grey).convert("LA")
    yield image_case("LA", encode(light), pixels=greys)
    cmyk = PICTURE.convert("CMYK")
    yield image_case("CMYK", encode(cmyk, "TIFF"), pixels=np.asarray(cmyk.convert("RGB")))
    printed = encode(cmyk, "JPEG")
    yield image_case("CMYK, JPEG", printed, pixels=np.asarray(Image.open(io.BytesIO(printed)).convert("RGB")))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        upright = Image.fromarray(np.arange(1, 7, dtype=np.uint8).reshape(2, 3) * 40).convert("RGB")
        turned = upright
        for inverse in {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(orientation, []):
            turned = turned.transpose(Image.Transpose(inverse))
        yield image_case(f"EXIF {orientation}", encode(turned, exif=exif), pixels=np.asarray(upright))
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = value
        yield image_case(f"EXIF {value}", encode(PICTURE, exif=exif))
    yield image_case(
        "broken EXIF", encode(PICTURE, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff"), warns="Corrupt EXIF data"
    )
    others = [Image.new("RGB", PICTURE.size, colour) for colour in ("red", "green")]
    for fmt in ("PNG", "WEBP", "TIFF"):
        more = {"lossless": True} if fmt == "WEBP" else {}
        data = encode(PICTURE, fmt, save_all=True, append_images=others, **more)
        yield image_case(f"animated {fmt}", data)
    jpeg = encode(PICTURE, "JPEG")
    decoded = np.asarray(Image.open(io.BytesIO(jpeg)))
    yield image_case(
        "several JPEGs in one", encode(PICTURE, "MPO", save_all=True, append_images=others), pixels=decoded
    )
    yield image_case("JPEG and junk", jpeg + b"junk", pixels=decoded)
    if features.check("avif"):
        data = encode(PICTURE, "AVIF")
        yield image_case("AVIF", data, pixels=np.asarray(Image.open(io.BytesIO(data))))


def places(folder: Path) -> Iterator[Case]:
    (folder / "folder").mkdir()
    (folder / "good.png").write_bytes(PNG)
    (folder / "wrong.jpg").write_bytes(PNG)
    (folder / "no suffix").write_bytes(PNG)
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "link.png").symlink_to(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("0.png", PNG)
    good, unreadable = str(folder / "good.png"), "cannot be read from"
    for name, place in {
        "path": good,
        "Path": folder / "good.png",
        "dict of a path": {"bytes": None, "path": good},
        "dict of both": {"bytes": PNG, "path": "/no/such.png"},
        "dict of a path alone": {"path": good},
        "wrong suffix": str(folder / "wrong.jpg"),
        "no suffix": str(folder / "no suffix"),
        "link": str(folder / "link.png"),
        "file URL": f"file://{good}",
        "in an archive": f"zip://0.png::{folder}/images.zip",
        "bytearray": bytearray(PNG),
        "memoryview": memoryview(PNG),
        "PIL image": PICTURE,
    }.items():
        yield image_case(name, place)
    for name, place in {
        "missing file": str(folder / "missing.png"),
        "folder": str(folder / "folder"),
        "file in a file": f"{good}/0.png",
        "link to itself": str(folder / "loop.png"),
        "long name": str(folder / ("x" * 300)),
        "long path": "x" * 5000,
        "base64": base64.b64encode(PNG).decode(),
        "data URL": f"data:image/png;base64,{base64.b64encode(PNG[:20]).decode()}",
        "NUL": "a\0b.png",
        "half a character": "a\ud83d.png",
        "empty string": "",
        "dot": ".",
        "home": "~/no/such.png",
        "not in the archive": f"zip://9.png::{folder}/images.zip",
        "no archive": f"zip://0.png::{folder}/missing.zip",
        "unknown protocol": "nothing://0.png",
        "no server": "http://127.0.0.1:9/0.png",
        "bad URL": "http://[::1/0.png",
        "dict of a missing path": {"bytes": None, "path": "/no/such.png"},
    }.items():
        yield image_case(name, place, f"{unreadable}|is no regular file|no format")
    yield image_case("named pipe", folder / "pipe.png", "no regular file")
    for device in ("/dev/zero", "/dev/null", "/dev/tty"):
        yield image_case(device, device, "no regular file|cannot be read")
    yield image_case("text", folder / "text.png", NO_FORMAT)
    yield image_case("empty file", folder / "empty.png", "0 bytes")


def values() -> Iterator[Case]:
    for name, value in {"None": None, "dict of None": {"bytes": None, "path": None}, "dict": {}}.items():
        yield image_case(name, value, "there is no image .None")
    for value in (0, 3.5, True, float("nan"), [PNG], (PNG,), {PNG}, object(), len, Ellipsis, [[1, 2], [3, 4]]):
        yield image_case(f"a {type(value).__name__} {value!r:.20}", value, "is not an image")
    yield image_case("dict of a number", {"bytes": 5, "path": None}, "a int is not an image")
    yield image_case("dict of a dict", {"bytes": {"bytes": PNG}, "path": None}, "a dict is not an image")
    for dtype in ("bool", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32"):
        yield image_case(f"array of {dtype}", PIXELS.astype(dtype), f"array of {dtype} is not an image")
    for dtype in ("float64", "complex64", "object", "datetime64[s]", "U3", "S3"):
        kind = np.dtype(dtype)
        yield image_case(f"array of {dtype}", np.zeros((4, 4, 3), kind), "is not an image")
    yield image_case("array of NaN", np.full((4, 4, 3), np.nan), "float64")
    for shape in ((), (5,), (5, 5, 2), (5, 5, 5), (2, 4, 4, 3), (0, 4, 3), (4, 0, 3), (4, 4, 0)):
        yield image_case(f"array of shape {shape}", np.zeros(shape, np.uint8), "not an image|has no pixels")
    yield image_case("array", PIXELS)
    yield image_case("array, channels first", PIXELS.transpose(2, 0, 1))
    yield image_case("array with gaps", np.repeat(PIXELS, 2, axis=0)[::2])
    yield image_case("array upside down", PIXELS[::-1][::-1])
    fixed = PIXELS.copy()
    fixed.flags.writeable = False
    yield image_case("array that cannot be written", fixed)
    yield image_case("grey array", PIXELS[..., 0], pixels=np.repeat(PIXELS[..., :1], 3, axis=2))
    tensor = torch.from_numpy(PIXELS.copy())
    yield image_case("tensor", tensor)
    yield image_case("tensor, channels first", tensor.permute(2, 0, 1))
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.int64, torch.bool):
        yield image_case(f"tensor of {dtype}", tensor.to(dtype), "is not an image")
    yield image_case("tensor of complex64", tensor.to(torch.complex64), "is not an image")
    yield image_case("tensor with a gradient", torch.zeros(4, 4, 3, requires_grad=True), "is not an image")
    yield image_case("sparse tensor", tensor.to_sparse(), "sparse_coo tensor of uint8")
    yield image_case("CSR tensor", torch.eye(4).to_sparse_csr(), "sparse_csr tensor of float32")
    yield image_case("tensor on no device", torch.empty(4, 4, 3, dtype=torch.uint8, device="meta"), "is not an image")
    yield image_case("tensor without pixels", torch.empty(0, 4, 3, dtype=torch.uint8), "no pixels")


def captions() -> Iterator[Case]:
    def case(name: str, text: Any, reason: str | None = None, **options: Any) -> Case:
        if reason is None:
            options.setdefault("pixels", PIXELS)
        return Case(f"caption: {name}", {**GOOD, "text": text}, reason, **options)

    for name, text in {
        "None": None,
        "empty": "",
        "spaces": " \t\n",
        "no captions": [],
        "list of None": [None],
    }.items():
        yield case(name, text, "its caption is empty")
    yield case("list of empty ones", ["", " ", None], "its caption is empty")
    for value in (
        7,
        3.5,
        True,
        float("nan"),
        b"a red star",
        {"en": "a"},
        [["a"]],
        [7],
        ["a", 3.5],
        object(),
        {"a", 1},
    ):
        yield case(f"{type(value).__name__} {value!r:.20}", value, "its caption is a")
    yield case("numbers of numpy", np.arange(3), "its caption is a")
    for number, text in enumerate(["\ud83d", "a \udfff", "\udc80", ["a red star", "\ud83d"]]):
        yield case(f"half a character {number}", text, "half a character")
    for name, text in {
        "list": ["a red star"],
        "list with gaps": [None, "a red star", ""],
        "tuple": ("a red star",),
        "array": np.array(["a red star"]),
        "generator": (text for text in ["a red star"]),
    }.items():
        yield case(name, text)
    for name, text in {
        "control characters": "a\x00\x01\x1b[31m red\x7f star",
        "megabyte": "a red star " * 100_000,
        "one long word": "x" * 1_000_000,
        "right to left": "\u202eشجرة",
        "emoji": "👩‍👩‍👧‍👦",
        "combining": "a" + "\u0301" * 500,
        "zero width": "\u200b",
        "special tokens": "<pad></s><unk>",
        "line breaks": "a\r\nred\u2028star",
    }.items():
        yield case(name, text, caption=text)


def labels() -> Iterator[Case]:
    for value in (None, -1, float("nan"), 99, -5, 1.5, "unicorn", "", b"cat", [1], (), {}, object(), 2**70, np.nan):
        yield Case(f"label: {value!r:.20}", {**GOOD, "label": value}, "label|class")
    for value in (1, 1.0, True, "circle", np.int64(1), torch.tensor(1)):
        yield Case(f"label: good {value!r:.20}", {**GOOD, "label": value}, pixels=PIXELS)


def rows() -> Iterator[Case]:
    for error in (ValueError("bad"), KeyError("image"), OSError(5, "disk"), RuntimeError("\ud83d\n\n"), IndexError()):
        yield Case(f"row: raises {type(error).__name__}", error, "the row cannot be read")
    yield Case("row: StopIteration of its own", StopIteration(), "the row cannot be read")
    yield Case("row: None", None, "returns None for the row")
    for lacking in ("image", "text"):
        row = {name: value for name, value in GOOD.items() if name != lacking}
        yield Case(f"row: without {lacking}", row, f"has no column '{lacking}'")
    yield Case("row: empty", {}, "has no column")
    for name, more in {"a number": 5, "None": None, "an empty name": "", "a tuple": (1, 2)}.items():
        yield Case(f"row: {name} as a column", {**GOOD, more: object()}, pixels=PIXELS)
    for name, more in {"id": "id", "epoch": "now", "valid": False, "pixel_values": 3}.items():
        yield Case(f"row: a column {name}", {**GOOD, name: more}, pixels=PIXELS)
    for value in ("seven", None, 3.5, float("nan"), [1]):
        yield Case(f"row: id {value!r}", {**GOOD, "example_id": value}, pixels=PIXELS)


def hostile(folder: Path) -> list[Case]:
    """Return all cases: files are made in `folder`."""
    made = [*damaged_files(), *sizes(), *modes(), *places(folder), *values(), *captions(), *rows()]
    names = [case.name for case in made]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return made
