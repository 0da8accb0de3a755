# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What it costs to decode full images of the sub-batch alone, after its selection, and not of the whole super-batch.

    python benchmarks/data_path.py              # the table, and benchmarks/results/data_path.json
    python benchmarks/data_path.py --quick      # a few images, to see that it runs

Early: every image of the super-batch is decoded in full, and the model makes the view of it on the device. Late: the
view alone, and then full images for the part of the sub-batch that is trained on in full (`jest_hf.data.late`). Both
decode with `scaled_jpeg_decoding=True`, without which late images are not used. The images are synthetic photographs
(noise with the spectrum of natural images, 1/f, at a JPEG quality of 90) in front of real collators; what a file holds
decides the cost of decoding it, and what it shows does not.

Early and late take turns, and every figure is a median over rounds. Seconds are CPU seconds of the process: others'
work on the same machine hardly shows in them, nor does the number of threads. So images per second are those of a core
that does nothing else. The bytes are those of the images that go to the device, as uint8.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Siglip2Processor, SiglipProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from jest_hf import JESTDataCollator
from jest_hf.batch import VIEW_PREFIX
from jest_hf.data import train_tokenizer
from jest_hf.data.late import LateImages
from jest_hf.data.rows import Rows
from jest_hf.models import View
from jest_hf.report import format_table


RESULTS = Path(__file__).parent / "results" / "data_path.json"

VIEWS = ("image:112", "num_patches:64")
FILTER_RATIOS = (0.5, 0.8, 0.9)
FILES = (("JPEG", 256), ("JPEG", 512), ("PNG", 256))
CAPTION = "a photograph of something or other in front of something else"


def photograph(size: int, image_format: str, generator: np.random.Generator) -> bytes:
    """A file of `size` x `size` pixels of coloured noise whose amplitudes fall as 1 / frequency."""
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    spectrum = np.fft.rfft2(generator.normal(size=(3, size, size))) / np.maximum(frequencies, 1 / size)
    noise = np.fft.irfft2(spectrum, s=(size, size))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    levels = 128 + 50 * (0.95 * noise[:1] + 0.3 * noise)  # colours go together
    buffer = io.BytesIO()
    options = {"quality": 90} if image_format == "JPEG" else {}
    Image.fromarray(levels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(buffer, image_format, **options)
    return buffer.getvalue()


def make_collator(view: View) -> JESTDataCollator:
    """SigLIP at 224 px, or SigLIP 2 NaFlex at 256 patches of 16 px; both with a word-level tokenizer."""
    tokenizer = train_tokenizer([CAPTION], max_length=16)
    if view.kind == "num_patches":
        return JESTDataCollator(
            Siglip2Processor(Siglip2ImageProcessorPil(patch_size=16), tokenizer), scaled_jpeg_decoding=True
        )
    image_processor = SiglipImageProcessorPil(size={"height": 224, "width": 224})
    return JESTDataCollator(SiglipProcessor(image_processor, tokenizer), scaled_jpeg_decoding=True)


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process that `work` takes, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def image_bytes(batch: dict[str, Tensor]) -> int:
    """Size of all images of a batch, masks and shapes included."""
    return sum(value.nbytes for name, value in batch.items() if "pixel" in name or "spatial" in name)


def measure(
    view: View, files: list[bytes], filter_ratio: float, sub_batch_size: int, fraction: float, rounds: int
) -> dict[str, Any]:
    """Early and late by turns, on one super-batch."""
    size = round(sub_batch_size / (1 - filter_ratio))
    rows = Rows([{"image": files[index % len(files)], "text": CAPTION} for index in range(size)])
    keys = list(range(size))
    early = make_collator(view)
    late = LateImages(rows, early.at_view(view), n_threads=1)
    n_at_view = round(fraction * sub_batch_size)
    kept = (1 - filter_ratio) * (1 - fraction)
    chosen = torch.arange(sub_batch_size)

    seconds = {"early": [], "scored": [], "trained": []}
    for _ in range(rounds + 1):
        took, full = cpu_seconds(lambda: early(rows.__getitems__(keys)))
        seconds["early"].append(took)
        took, small = cpu_seconds(lambda: late.collator(rows.__getitems__(keys)))
        seconds["scored"].append(took)
        sub_batch = {name: value[chosen] for name, value in small.items()}
        took, sub_batch = cpu_seconds(lambda batch=sub_batch: late(batch, n_at_view))
        seconds["trained"].append(took)
    seconds = {name: np.array(values[1:]) for name, values in seconds.items()}  # the first round warms up
    both = seconds["scored"] + seconds["trained"]

    moved = image_bytes(small) + sum(
        value[n_at_view:].nbytes for name, value in sub_batch.items() if name in full and name not in small
    )
    return {
        "super_batch": size,
        "sub_batch": sub_batch_size,
        "serves": LateImages.where_it_serves(rows, early.at_view(view), kept) is not None,
        "early_images_per_s": size / float(np.median(seconds["early"])),
        "late_images_per_s": size / float(np.median(both)),
        "speedup": float(np.median(seconds["early"] / both)),
        "view_over_full": float(np.median(seconds["scored"] / seconds["early"])),
        "waited_for": float(np.median(seconds["trained"] / seconds["early"])),
        "early_bytes": image_bytes(full),
        "late_bytes": moved,
        "bytes_ratio": image_bytes(full) / moved,
        "levels_apart": levels_apart(early.at_view(view), late.collator, rows),
    }


def levels_apart(both: JESTDataCollator, alone: JESTDataCollator, rows: Rows) -> float:
    """Mean difference, of 255 levels, between views made from images decoded in full and at the view's own size."""
    some = rows.__getitems__(range(8))
    name = VIEW_PREFIX + "pixel_values"
    return float((both(some)[name].float() - alone(some)[name].float()).abs().mean())


def processor_name() -> str:
    """Model of the CPU, as far as the system says."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sub_batch_size", type=int, default=32)
    parser.add_argument("--low_resolution_fraction", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=32, help="different images")
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it runs; writes no results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    if options.quick:
        options.sub_batch_size, options.rounds, options.files = 4, 1, 8
    torch.set_num_threads(1)

    generator = np.random.default_rng(0)
    results = []
    for image_format, size in FILES:
        files = [photograph(size, image_format, generator) for _ in range(options.files)]
        kilobytes = sum(map(len, files)) / len(files) / 1000
        for view in map(View.parse, VIEWS):
            for filter_ratio in FILTER_RATIOS:
                found = measure(
                    view, files, filter_ratio, options.sub_batch_size, options.low_resolution_fraction, options.rounds
                )
                source = {"format": image_format, "pixels": size, "kilobytes": kilobytes}
                results.append({**source, "view": str(view), "filter_ratio": filter_ratio, **found})

    headers = [
        "file",
        "view",
        "f",
        "early im/s",
        "late im/s",
        "speed-up",
        "view/full",
        "waited for",
        "bytes",
        "serves",
    ]
    table = [
        [
            f"{row['format']} {row['pixels']} px, {row['kilobytes']:.0f} kB",
            row["view"],
            row["filter_ratio"],
            f"{row['early_images_per_s']:.0f}",
            f"{row['late_images_per_s']:.0f}",
            f"{row['speedup']:.2f}",
            f"{row['view_over_full']:.2f}",
            f"{row['waited_for']:.1%}",
            f"1/{row['bytes_ratio']:.1f}",
            "yes" if row["serves"] else "no",
        ]
        for row in results
    ]
    print(format_table(headers, table))
    if not options.quick:
        setting = {name: getattr(options, name) for name in ("low_resolution_fraction", "rounds", "files")}
        setting |= {"threads": 1, "torch": torch.__version__, "cpu": processor_name()}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"setting": setting, "results": results}, indent=2) + "\n")
        print(f"\nWritten to {options.output}")


if __name__ == "__main__":
    main()
