# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`jest-hf cache-images`: decode and resize a data set once, for all runs.

    jest-hf cache-images --model google/siglip2-base-patch16-224 --dataset "data/*.parquet" --output_dir images \\
        --num_workers 16

Several such commands may write one folder at once, also on several hosts that share it. The flags for data have the
names of those of `jest-hf cache-reference`. Models are loaded without weights.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from jest_hf.flags import OF_SOURCE, add_source_arguments


if TYPE_CHECKING:
    from jest_hf.data.image_cache import ImageCache
    from jest_hf.images.pixels import Geometry


RENAMED = OF_SOURCE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command to a parser."""
    add = parser.add_argument
    add("--model", required=True, help="Hub id or path of the learner, whose processor names the size of the images.")
    add("--model_revision", help="Branch, tag or commit of a --model on the Hub. Default: main.")
    add("--ref_model", help="Hub id or path of a reference that runs at every step and reads images of another size. "
        "Default: no such reference.")  # fmt: skip
    add("--ref_model_revision", help="Branch, tag or commit of a --ref_model on the Hub. Default: main.")
    add("--scoring_view", help="View with images of another size: image:112 or num_patches:64. Default: none.")
    add("--output_dir", required=True, help="Folder of the cache; images that are finished there are kept.")
    add_source_arguments(parser, "decode")
    add = parser.add_argument_group("reading").add_argument
    add("--scaled_jpeg_decoding", action="store_true",
        help="Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, other pixels.")  # fmt: skip
    add("--num_workers", type=int, default=0, help="Processes that decode. Default: 0, the main process.")
    add("--disable_tqdm", action="store_true", help="Hide the progress bar.")


def run(options: argparse.Namespace) -> ImageCache:
    """Make the cache, or finish an unfinished one, and print a line about it."""
    from jest_hf.data.image_writer import write_images
    from jest_hf.data.rows import Rows
    from jest_hf.data.sources import load_named

    start = time.perf_counter()
    rows = Rows(load_named(options), options.image_column)
    cache = write_images(
        options.output_dir,
        rows,
        options.image_column,
        _geometries(options),
        scaled_jpeg_decoding=options.scaled_jpeg_decoding,
        num_workers=options.num_workers,
        disable_tqdm=options.disable_tqdm,
        tell=print,
    )
    print(summary(cache, time.perf_counter() - start))
    return cache


def summary(cache: ImageCache, seconds: float) -> str:
    """Describe a cache in one line."""
    from jest_hf.data.image_cache import BROKEN

    broken = int((cache.states() == BROKEN).sum())
    return (
        f"{cache.folder}: {cache.n_rows:,} rows ({broken:,} broken), {cache.record.itemsize:,} bytes a row, "
        f"{cache.n_bytes / 1e6:.1f} MB, {seconds:.0f} s"
    )


def _geometries(options: argparse.Namespace) -> list[Geometry]:
    from jest_hf.data.collator import geometry_at
    from jest_hf.images.views import View

    learner = _geometry_of("model", options.model, options.model_revision)
    geometries = [learner]
    if options.ref_model is not None:
        geometries.append(_geometry_of("ref_model", options.ref_model, options.ref_model_revision))
    if options.scoring_view is not None:
        try:
            at_view = geometry_at(View.parse(options.scoring_view), learner)
        except ValueError as error:
            raise ValueError(f"scoring_view={options.scoring_view!r}: {error}") from error
        if at_view is None:
            raise ValueError(
                f"scoring_view={options.scoring_view!r} is made from the full images of {options.model}, on the "
                "device; leave it out."
            )
        geometries.append(at_view)
    return geometries


def _geometry_of(option: str, model: str, revision: str | None) -> Geometry:
    from jest_hf.images.faithful import faithful_geometry
    from jest_hf.models.load import load_processor
    from jest_hf.reference import locate_reference

    snapshot = locate_reference(model, revision, weights=False, option=option)
    processor = load_processor(snapshot.folder, f"{option}={model!r}")
    return faithful_geometry(getattr(processor, "image_processor", processor))


__all__ = ["add_arguments", "run", "summary"]
