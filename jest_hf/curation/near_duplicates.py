# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Near duplicates of images: a perceptual hash, and an exact search for hashes that differ in a few bits."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from PIL import Image


HASH_SIZE = 8  # comparisons a side and channel
HASH_BITS = 3 * HASH_SIZE * HASH_SIZE


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Return a hash of an image, uint8 `[24]`, that resizing and recompression change in a few bits only.

    This is the difference hash of each colour channel: the image is shrunk to 9 x 8 pixels, and each bit is 1 if a
    pixel is brighter than its left neighbour. Without colour, a red and a blue heart would have the same hash.

    Args:
        image (`PIL.Image.Image`): The image.

    Example:

    ```python
    >>> from PIL import Image
    >>> from jest_hf.curation.near_duplicates import perceptual_hash
    >>> image = Image.linear_gradient("L")
    >>> bool((perceptual_hash(image) == perceptual_hash(image.resize((100, 100)))).all())
    True

    ```
    """
    small = image.convert("RGB").resize((HASH_SIZE + 1, HASH_SIZE), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.int16)
    return np.packbits(pixels[:, 1:] > pixels[:, :-1])


def first_of_near_duplicates(hashes: np.ndarray, distance: int, priority: np.ndarray | None = None) -> np.ndarray:
    """Keep one row of each set of near duplicates.

    Rows are visited in the order of falling `priority`. A row is dropped if it differs in at most `distance` bits from
    a row that was kept before. So two kept rows are never that close, and each dropped row is close to a kept one.

    The search is exact. The bits are cut into `distance + 1` bands. Two hashes that differ in at most `distance` bits
    are equal in at least one band, so a row is compared only with kept rows that share a band.

    Args:
        hashes (`np.ndarray`): Hashes of N rows, uint8 `[N, H]`.
        distance (`int`): Largest number of differing bits of near duplicates, of 8 H.
        priority (`np.ndarray`, *optional*): `[N]`; of near duplicates the row with the largest value is kept. By
            default the first row is kept.

    Returns:
        `np.ndarray`: bool `[N]`, True for the rows to keep.

    Example:

    ```python
    >>> import numpy as np
    >>> from jest_hf.curation.near_duplicates import first_of_near_duplicates
    >>> hashes = np.array([[0b0000], [0b0001], [0b1111]], dtype=np.uint8)
    >>> first_of_near_duplicates(hashes, distance=1).tolist()
    [True, False, True]

    ```
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
        # One band after the other, since most duplicates are found in the first one.
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
