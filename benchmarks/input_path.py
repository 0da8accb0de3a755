# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What it costs on one core to make the pixels of a model of JPEG files, here and with the tools that others use.

    python benchmarks/input_path.py              # the table, and benchmarks/results/input_path.json
    python benchmarks/input_path.py --quick      # a few images, to see that it runs

Files of 256, 512 and 1024 pixels a side become images of 224 pixels, bicubic, as for SigLIP. All paths take turns. A
figure is the median over rounds, in milliseconds of CPU time an image: whole (from the bytes of the file), and after
decoding. jest_hf hands uint8 to the device, which rescales and normalises; the others do this on the CPU, image by
image. The images are the synthetic photographs of data_path.py.

- `jest_hf`: the path of the collator, with simplejpeg where it is installed. `jest_hf, PIL decodes`: without it.
  `jest_hf, scaled`: with `scaled_jpeg_decoding=True`. `jest_hf, image cache`: pixels copied from a cache that
  `jest-hf cache-images` would write, from pages in memory: what the disk costs beyond that is not measured.
- `HF PIL`: `SiglipImageProcessorPil`. `HF fast`: `SiglipImageProcessor`, which needs torchvision.
- `open_clip`: `open_clip.image_transform`, where open_clip is installed. `PIL and numpy`: the same steps without
  torchvision, which are the resize of PIL and a conversion to a normalised float tensor.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from benchmarks.data_path import photograph, processor_name
from jest_hf.data.image_writer import write_images
from jest_hf.data.rows import Rows
from jest_hf.images import decoding
from jest_hf.images.decoding import decode_pixels
from jest_hf.images.pixels import geometry_of
from jest_hf.report import format_table


RESULTS = Path(__file__).parent / "results" / "input_path.json"
SIZES = (256, 512, 1024)
TARGET = 224

Steps = tuple[Callable[[bytes], Any], Callable[[Any], Any]]  # decode, then make the model's input


def open_rgb(data: bytes) -> Image.Image:
    """Decode with PIL, as data sets do."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def own_paths() -> dict[str, Steps]:
    """The paths of jest_hf."""
    geometry = geometry_of(SiglipImageProcessorPil(size={"height": TARGET, "width": TARGET}))

    def encode(pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(geometry.encode(pixels)["pixel_values"])

    def scaled(data: bytes) -> np.ndarray:
        return decode_pixels(data, [geometry], scaled_jpeg_decoding=True)

    def by_pil(data: bytes) -> np.ndarray:
        return np.array(open_rgb(data))

    paths: dict[str, Steps] = {"jest_hf": (decode_pixels, encode), "jest_hf, scaled": (scaled, encode)}
    if decoding.simplejpeg is not None:
        paths["jest_hf, PIL decodes"] = (by_pil, encode)
    return paths


def cached_path(files: list[bytes], folder: str) -> Steps:
    """Copy the pixels of a file from an image cache."""
    geometry = geometry_of(SiglipImageProcessorPil(size={"height": TARGET, "width": TARGET}))
    cache = write_images(folder, Rows([{"image": data} for data in files]), "image", [geometry], disable_tqdm=True)
    places = {data: place for place, data in enumerate(files)}

    def read(data: bytes) -> np.ndarray:
        return cache.image(places[data]).encode({"": geometry})["pixel_values"]

    return read, np.copy


def other_paths() -> tuple[dict[str, Steps], dict[str, str]]:
    """The paths of other tools, and of those that cannot be loaded the reason."""
    slow = SiglipImageProcessorPil(size={"height": TARGET, "width": TARGET})
    paths: dict[str, Steps] = {
        "HF PIL": (open_rgb, lambda image: slow(image, return_tensors="pt")["pixel_values"]),
        "PIL and numpy": (open_rgb, resize_and_normalise),
    }
    missing = {}
    try:
        import torchvision  # noqa: F401
        from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor

        fast = SiglipImageProcessor(size={"height": TARGET, "width": TARGET})
        paths["HF fast"] = (open_rgb, lambda image: fast(image, return_tensors="pt")["pixel_values"])
    except (ImportError, RuntimeError) as error:
        missing["HF fast"] = f"{type(error).__name__}: {error}"
    try:
        from open_clip.transform import image_transform

        paths["open_clip"] = (open_rgb, image_transform(TARGET, is_train=False))
    except (ImportError, RuntimeError) as error:
        missing["open_clip"] = f"{type(error).__name__}: {error}"
    return paths, missing


def resize_and_normalise(image: Image.Image) -> torch.Tensor:
    """Resize with PIL, and make a float tensor of mean 0.5 and deviation 0.5."""
    resized = np.array(image.resize((TARGET, TARGET), Image.Resampling.BICUBIC))
    return (torch.from_numpy(resized).permute(2, 0, 1).contiguous().float() / 255 - 0.5) / 0.5


def cpu_ms(steps: Steps, files: list[bytes]) -> tuple[float, float]:
    """CPU milliseconds of decoding an image and of all that follows, on average, one image after the other."""
    decode, make = steps
    spent = np.zeros(2)
    for data in files:
        start = time.process_time()
        image = decode(data)
        decoded = time.process_time()
        make(image)
        spent += decoded - start, time.process_time() - decoded
    decoding_ms, making_ms = (1000 * spent / len(files)).tolist()
    return decoding_ms, making_ms


def levels_off(path: Steps, files: list[bytes]) -> int:
    """Largest difference, of 255 levels, from an image that PIL decodes in full and resizes."""
    expected = [np.asarray(open_rgb(data).resize((TARGET, TARGET), Image.Resampling.BICUBIC)) for data in files]
    found = [path[1](path[0](data)).transpose(1, 2, 0) for data in files]
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(expected, found, strict=True))


def measure(size: int, n_files: int, rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All paths by turns, on the same files."""
    rng = np.random.default_rng(0)
    files = [photograph(size, "JPEG", rng) for _ in range(n_files)]
    own = own_paths()
    others, missing = other_paths()
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        own["jest_hf, image cache"] = cached_path(files, folder)
        for _ in range(rounds + 1):
            for name, steps in (own | others).items():
                times.setdefault(name, []).append(cpu_ms(steps, files))
    taken = {name: np.array(pairs[1:]) for name, pairs in times.items()}  # the first round warms up
    rows = []
    for name, pairs in taken.items():
        whole = pairs.sum(axis=1)
        rows.append(
            {
                "pixels": size,
                "path": name,
                "whole_ms": float(np.median(whole)),
                "after_decoding_ms": float(np.median(pairs[:, 1])),
                "whole_over_jest_hf": float(np.median(whole / taken["jest_hf"].sum(axis=1))),
                "whole_over_image_cache": float(np.median(whole / taken["jest_hf, image cache"].sum(axis=1))),
                "after_decoding_over_jest_hf": float(np.median(pairs[:, 1] / taken["jest_hf"][:, 1])),
                "most_levels_off_pil": levels_off(own[name], files) if name in own else None,
            }
        )
    return rows, missing


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=32, help="different images of each size")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it runs; writes no results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    if options.quick:
        options.files, options.rounds = 2, 1
    torch.set_num_threads(1)

    results: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for size in SIZES:
        rows, missing = measure(size, options.files, options.rounds)
        results += rows
    headers = ["file", "path", "ms", "after decoding", "over jest_hf", "after decoding, over", "over cache", "levels"]
    table = [
        [
            f"{row['pixels']} px",
            row["path"],
            f"{row['whole_ms']:.3f}",
            f"{row['after_decoding_ms']:.2f}",
            f"{row['whole_over_jest_hf']:.2f}",
            f"{row['after_decoding_over_jest_hf']:.2f}",
            f"{row['whole_over_image_cache']:.0f}",
            "" if row["most_levels_off_pil"] is None else row["most_levels_off_pil"],
        ]
        for row in results
    ]
    print(format_table(headers, table))
    for name, reason in missing.items():
        print(f"{name}: not measured ({reason})")
    if not options.quick:
        setting = {"files": options.files, "rounds": options.rounds, "threads": 1, "target": TARGET}
        setting |= {"torch": torch.__version__, "cpu": processor_name(), "not_measured": missing}
        setting["simplejpeg"] = decoding.simplejpeg is not None
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")
        print(f"\nWritten to {options.output}")


if __name__ == "__main__":
    main()
