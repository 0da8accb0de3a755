# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever a row has in its image column is an image, or a broken one with a reason: it never ends a run."""

from __future__ import annotations

import base64
import io
import os
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from jest_hf.images.decoding import decode_pixels
from jest_hf.images.reading import BrokenImage, read_encoded


def encoded(fmt: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(data, fmt)
    return data.getvalue()


PNG = encoded()


def hostile(folder):
    """By name, values that are no image. Each has to be refused at once, with a reason on one line."""
    (folder / "folder").mkdir()
    (folder / "text.png").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")
    (folder / "broken.zip").write_bytes(b"PK\x03\x04 broken")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("0.png", PNG)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    values = {
        "none": None,
        "number": 3,
        "list": [PNG],
        "no bytes": b"",
        "no entry": {},
        "base64": base64.b64encode(PNG * 20).decode(),
        "long path": "x" * 5000,
        "long name": str(folder / ("x" * 300)),
        "NUL": "a\0b.png",
        "lone surrogate": "a\ud83d.png",
        "missing file": str(folder / "missing.png"),
        "folder": str(folder / "folder"),
        "file in a file": str(folder / "text.png" / "0.png"),
        "link to itself": str(folder / "loop.png"),
        "named pipe": str(folder / "pipe.png"),
        "device": "/dev/zero",
        "empty string": "",
        "not in the archive": f"zip://9.png::{folder}/images.zip",
        "broken archive": f"zip://0.png::{folder}/broken.zip",
        "no archive": f"zip://0.png::{folder}/missing.zip",
        "unknown protocol": "nothing://0.png",
        "no server": "http://127.0.0.1:9/0.png",
        "text": str(folder / "text.png"),
        "empty file": str(folder / "empty.png"),
        "EPS": encoded("EPS"),
        "PDF": encoded("PDF"),
        "bfloat16": torch.zeros(3, 4, 4, dtype=torch.bfloat16),
        "float": torch.zeros(3, 4, 4),
        "sparse": torch.zeros(3, 4, 4, dtype=torch.uint8).to_sparse(),
        "meta": torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta"),
        "complex": np.zeros((4, 4, 3), dtype=complex),
        "objects": np.array([[None]]),
        "no pixels": np.zeros((0, 4, 3), dtype=np.uint8),
        "five channels": np.zeros((5, 5, 5), dtype=np.uint8),
    }
    for cut in range(1, len(PNG), 7):  # a file that ends too early
        values[f"first {cut} bytes"] = PNG[:cut]
    generator = np.random.default_rng(1)
    for number in range(40):
        values[f"random bytes {number}"] = generator.bytes(int(generator.integers(1, 200)))
        changed = bytearray(PNG)
        changed[int(generator.integers(8, 33))] ^= 0xFF  # in the header, which has a checksum
        values[f"changed header {number}"] = bytes(changed)
    return values


def test_hostile_values_are_broken_images(tmp_path):
    values = hostile(tmp_path)
    assert len(values) > 120
    for name, value in values.items():
        try:
            found = decode_pixels(value)
        except BrokenImage as reason:
            assert str(reason) and "\n" not in str(reason) and len(str(reason)) < 500, name
        else:  # PIL reads what is there of some truncated files
            assert name.startswith(("first", "changed")) and found.shape == (6, 8, 3), name


def test_reasons_name_what_is_wrong(tmp_path):
    values = hostile(tmp_path)
    for name, words in {
        "base64": "characters; if they are base64, decode them",
        "named pipe": "no regular file",
        "device": "no regular file",
        "lone surrogate": "cannot be read from",
        "bfloat16": "strided tensor of bfloat16",
        "sparse": "sparse_coo tensor of uint8",
        "EPS": "no format that is read here .JPEG",
        "missing file": "No such file",
    }.items():
        with pytest.raises(BrokenImage, match=words):
            decode_pixels(values[name])


def test_what_datasets_opens_is_opened(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a/0.png", PNG)
    (tmp_path / "0.png").write_bytes(PNG)
    places = {
        "file": str(tmp_path / "0.png"),
        "path": tmp_path / "0.png",
        "row": {"bytes": None, "path": str(tmp_path / "0.png")},
        "archive": f"zip://a/0.png::{tmp_path}/images.zip",
        "file URL": f"file://{tmp_path}/0.png",
    }
    for name, place in places.items():
        assert read_encoded(place) == PNG, name


def test_a_file_behind_http(tmp_path):
    (tmp_path / "0.png").write_bytes(PNG)

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert read_encoded(f"{address}/0.png") == PNG
        with pytest.raises(BrokenImage, match="cannot be read from"):
            read_encoded(f"{address}/1.png")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO"])
def test_formats_of_published_images(fmt):
    assert decode_pixels(encoded(fmt)).ndim == 3
