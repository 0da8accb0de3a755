# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images that look alike: a perceptual hash, and an exact search for hashes that differ in a few bits."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from PIL import Image


HASH_SIZE = 8  # comparisons a side and channel
HASH_BITS = 3 * HASH_SIZE * HASH_SIZE


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """
    A hash that survives resizing and recompression: uint8 `[24]`, to be compared bit by bit.

    The difference hash, of each colour channel: the image is shrunk to 9 x 8 pixels, and a bit says whether a pixel is
    brighter than its neighbour. Without colour, a red and a blue heart would be the same image.
    """
    small = image.convert("RGB").resize((HASH_SIZE + 1, HASH_SIZE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)
    return np.packbits(pixels[:, 1:] > pixels[:, :-1])


def first_of_near_duplicates(hashes: np.ndarray, distance: int, priority: np.ndarray | None = None) -> np.ndarray:
    """
    Of rows whose hashes are alike, the first.

    Rows are gone through in the order of falling `priority`; a row is dropped if one that was kept before differs from
    it in at most `distance` bits. So no two kept rows are that close, and each dropped one is close to a kept one.

    The search is exact. The bits are cut into `distance + 1` bands: of two hashes that close, at least one band is
    equal, so only kept rows that share a band are compared.

    Args:
        hashes (`np.ndarray`): uint8 `[N, H]`.
        distance (`int`): Bits, of 8 H.
        priority (`np.ndarray`, *optional*): `[N]`, which of several alike to keep; default: the one that comes first.

    Returns:
        `np.ndarray`: bool `[N]`, the rows to keep.
    """
    n, n_bits = len(hashes), 8 * hashes.shape[1]
    order = np.arange(n) if priority is None else np.argsort(-priority, kind="stable")
    keep = np.zeros(n, dtype=bool)
    if distance >= n_bits:
        keep[order[:1]] = True
        return keep
    bands = np.array_split(np.unpackbits(hashes, axis=1), distance + 1, axis=1)
    bands = [np.packbits(band, axis=1) for band in bands]
    kept: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for row in order.tolist():
        keys = [(number, band[row].tobytes()) for number, band in enumerate(bands)]
        # One band after the other: a duplicate is mostly found at once.
        if any(_any_close(hashes, row, kept[key], distance) for key in keys):
            continue
        keep[row] = True
        for key in keys:
            kept[key].append(row)
    return keep


def _any_close(hashes: np.ndarray, row: int, others: list[int], distance: int) -> bool:
    if not others:
        return False
    differing = np.bitwise_count(hashes[others] ^ hashes[row]).sum(axis=1, dtype=np.int64)
    return bool((differing <= distance).any())


__all__ = ["HASH_BITS", "first_of_near_duplicates", "perceptual_hash"]
