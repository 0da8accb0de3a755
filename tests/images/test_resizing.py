# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every resize is within 2 levels of PIL's, in the calling thread, and PIL's own where torch is further off."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jest_hf.images import resizing
from jest_hf.images.resizing import MOST_LEVELS, resize, resizer


BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
# Height and width before and after.
SIZES = [
    ((256, 256), (224, 224)),
    ((512, 512), (224, 224)),
    ((480, 640), (224, 224)),
    ((640, 427), (224, 224)),  # PIL 13 begins with the vertical pass
    ((648, 105), (309, 60)),
    ((50, 251), (13, 252)),
    ((333, 500), (224, 336)),
    ((31, 47), (224, 224)),
    ((17, 400), (64, 32)),
    ((400, 17), (32, 64)),
    ((1, 1), (16, 16)),
    ((1, 300), (7, 5)),
    ((301, 2), (3, 90)),
    ((37, 53), (1, 1)),
    ((64, 50), (64, 25)),  # one pass
    ((50, 64), (25, 64)),
]
PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "clothing" / "clothing_128.parquet"


def drawings(height: int, width: int) -> dict[str, np.ndarray]:
    """Images that a resize treats worst: noise, black and white noise, a chequerboard; and one of one colour."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    levels = {
        "noise": rng.integers(0, 256, (height, width, 3)),
        "black and white": 255 * rng.integers(0, 2, (height, width, 3)),
        "chequered": np.repeat(((y // 3 + x // 2) % 2 * 255)[..., None], 3, axis=2),
        "plain": np.full((height, width, 3), 77),
    }
    return {name: array.astype(np.uint8) for name, array in levels.items()}


def by_pil(pixels: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resample))


def levels_off(pixels: np.ndarray, size: tuple[int, int], resample: int) -> int:
    resized = resize(pixels, size, resample)
    assert resized.dtype == np.uint8 and resized.shape == (*size, 3) and resized.flags.writeable
    return int(np.abs(resized.astype(int) - by_pil(pixels, size, resample).astype(int)).max())


@pytest.mark.parametrize(("resample", "most"), [(BICUBIC, 2), (BILINEAR, 1)], ids=["bicubic", "bilinear"])
@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_pixels_are_at_most_2_levels_off_pils(before, after, resample, most):
    assert resizer(resample) == "torch"
    for name, pixels in drawings(*before).items():
        assert levels_off(pixels, after, resample) <= most, name


@pytest.mark.parametrize("resample", [BICUBIC, BILINEAR], ids=["bicubic", "bilinear"])
def test_pixels_of_any_size_are_at_most_2_levels_off_pils(resample):
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = np.exp(rng.uniform(0, np.log(600), 2)).astype(int).tolist()
        size = tuple(np.exp(rng.uniform(0, np.log(300), 2)).astype(int).tolist())
        for name, pixels in drawings(height, width).items():
            assert levels_off(pixels, size, resample) <= MOST_LEVELS, (height, width, size, name)


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"no photographs in {PHOTOGRAPHS.parent}")
@pytest.mark.parametrize("resample", [BICUBIC, BILINEAR], ids=["bicubic", "bilinear"])
def test_photographs_are_at_most_2_levels_off_pils(resample):
    images = pq.ParquetFile(PHOTOGRAPHS).read_row_group(0, columns=["image"])["image"].to_pylist()[:100]
    for image in images:
        pixels = np.array(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
        for size in ((224, 224), (64, 64), (37, 90)):
            assert levels_off(pixels, size, resample) <= MOST_LEVELS


@pytest.mark.parametrize("resample", [0, 1, 4, 5], ids=["nearest", "lanczos", "box", "hamming"])
def test_other_filters_are_pils(resample):
    assert resizer(resample) == "PIL"
    for pixels in drawings(40, 61).values():
        assert np.array_equal(resize(pixels, (16, 24), resample), by_pil(pixels, (16, 24), resample))


def test_an_image_of_the_right_size_is_returned_as_it_is():
    pixels = drawings(16, 24)["noise"]
    assert resize(pixels, (16, 24), BICUBIC) is pixels


@pytest.mark.parametrize("change", ["levels", "order"])
def test_pil_resizes_where_torch_is_further_off(monkeypatch, change):
    """As with a version of torch with another kernel, or of PIL with another order of passes."""
    if change == "levels":
        by_torch = resizing._by_torch
        monkeypatch.setattr(resizing, "_by_torch", lambda *of: (by_torch(*of) // 8 * 8).astype(np.uint8))
    else:
        monkeypatch.setattr(resizing, "_VERTICAL_FIRST", not resizing._VERTICAL_FIRST)
    resizer.cache_clear()
    try:
        assert resizer(BICUBIC) == "PIL"
        pixels = drawings(40, 61)["noise"]
        assert np.array_equal(resize(pixels, (16, 24), BICUBIC), by_pil(pixels, (16, 24), BICUBIC))
    finally:
        resizer.cache_clear()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by /proc")
def test_a_resize_starts_no_threads():
    """Loader workers and the threads of late images would otherwise take each other's cores."""
    code = """
import os, numpy as np, torch
from jest_hf.images.resizing import resize
torch.set_num_threads(4)
before = len(os.listdir("/proc/self/task"))
resize(np.zeros((1500, 1500, 3), dtype=np.uint8), (700, 700), 3)
after = len(os.listdir("/proc/self/task"))
torch.randn(2000, 2000).sum()  # this one does
print(before, after, len(os.listdir("/proc/self/task")))
"""
    threads = {**os.environ, "OMP_NUM_THREADS": "4", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=threads)
    before, after, with_threads = map(int, run.stdout.split())
    assert after == before < with_threads
