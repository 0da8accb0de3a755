# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The encoded bytes of an image, from whatever a row has in its image column: bytes, a path, a place in an archive."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from os import PathLike
from typing import Any, cast

import fsspec


LAZY = "_encoded_and_mode"  # the attribute of an image that is not decoded yet
_SHOWN = 60  # characters of a path in a message


class BrokenImage(ValueError):
    """Raised for an image that cannot be used; the message gives the reason."""


def read_encoded(source: Any) -> bytes:
    """Return the encoded bytes of an image.

    Args:
        source (`bytes`, path, URL, or `{"bytes", "path"}` dict): The image. A path may be anything that `datasets`
            opens: a file, a file in an archive (`zip://0.png::images.zip`), `hf://...`, `https://...`.

    Raises:
        BrokenImage: if there are no bytes, or they cannot be read, whatever the reason.

    Example:

    ```python
    >>> from jest_hf.images.reading import read_encoded
    >>> read_encoded({"bytes": b"GIF89a", "path": None})
    b'GIF89a'

    ```
    """
    if isinstance(source, BrokenImage):  # of a row that could not be read
        raise source
    if isinstance(source, Mapping):
        data, path = source.get("bytes"), source.get("path")
        source = path if data is None else data
    if source is None:
        raise BrokenImage("there is no image (None)")
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise BrokenImage("there is no image (0 bytes)")
        return cast(bytes, source)  # io.BytesIO takes all three
    if not isinstance(source, str | PathLike):
        raise BrokenImage(f"a {type(source).__name__} is not an image")
    try:
        path = os.fspath(source)
        data = _read_remote(str(path)) if "://" in str(path) else _read_file(path)
        if not data:
            raise BrokenImage(f"there is no image (0 bytes in {_short(path)})")
        return data
    except (BrokenImage, MemoryError):
        raise
    # A place that is no path, a damaged disk or archive, a network: each has exceptions of its own.
    except Exception as error:
        raise BrokenImage(f"the image cannot be read from {_short(source)} ({_reason(error)})") from error


def encoded_of(value: Any) -> Any:
    """Return the encoded form, `{"bytes", "path"}`, of a [`~jest_hf.images.lazy.LazyImage`] that was not used yet;
    any other value as it is.

    The mode of a feature `datasets.Image(mode="L")` is added as `"mode"`.
    """
    lazy = getattr(value, "__dict__", {}).get(LAZY)
    return value if lazy is None else with_mode(*lazy)


def with_mode(encoded: Any, mode: str | None) -> Any:
    """Return an encoded image, `{"bytes", "path"}`, with the mode to convert it to, if there is one."""
    return {**encoded, "mode": mode} if mode is not None and isinstance(encoded, Mapping) else encoded


def _read_file(path: str | bytes) -> bytes:
    # O_NONBLOCK: to open a named pipe would wait for a writer, perhaps for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BrokenImage(f"{_short(path)} is no regular file")
        return file.read()


def _read_remote(path: str) -> bytes:
    with fsspec.open(path, "rb") as file:
        return cast(bytes, file.read())


def _short(source: Any) -> str:
    text = ascii(os.fspath(source))
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}... ({len(text)} characters; if they are base64, decode them to bytes)"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {str(error)[:200]}"


__all__ = ["LAZY", "BrokenImage", "encoded_of", "read_encoded", "with_mode"]
