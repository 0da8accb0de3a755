# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`jest-hf cache-reference`: embed a data set with a reference, in one process or, with `accelerate launch`, several.

    jest-hf cache-reference --ref_model google/siglip2-base-patch16-224 --dataset "data/*.parquet" --output_dir cache
    accelerate launch $(jest-hf preset ddp) -m jest_hf.cli cache-reference --ref_model ... (the same flags)

The flags for data have the names of those of `examples/run_jest.py`.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging

from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.reasons import mostly_broken
from jest_hf.data.rows import Rows
from jest_hf.data.sources import add_source_arguments, load_named
from jest_hf.distributed import Ranks
from jest_hf.models import DualEncoder, expose_temperature
from jest_hf.reference.cache import SHARD_ROWS, write_cache
from jest_hf.reference.fingerprint import identify_reference
from jest_hf.reference.load import load_reference
from jest_hf.reference.place import place_reference
from jest_hf.reference.shards import DTYPES
from jest_hf.reference.store import ReferenceCache


logger = logging.get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command to a parser."""
    add = parser.add_argument
    add("--ref_model", required=True, help="Hub id or path of the reference")
    add("--ref_model_revision", help="branch, tag or commit of a --ref_model on the Hub; default: main")
    add_source_arguments(parser, "embed")
    add("--caption_column", help="column of the captions; default: the first of text, caption and captions")
    add("--max_length", type=int, help="tokens that captions are padded to; default: the reference's own length")
    add("--scaled_jpeg_decoding", action="store_true", help="decode large JPEGs at 1/2, 1/4 or 1/8 of their size")
    add("--output_dir", required=True, help="folder of the cache; shards that are finished there are kept")
    add("--dtype", choices=list(DTYPES), default="float16", help="dtype of the stored embeddings; default: float16")
    add("--batch_size", type=int, default=64, help="rows in a forward, on one device; default: 64")
    add("--shard_rows", type=int, default=SHARD_ROWS, help=f"rows in a shard; default: {SHARD_ROWS}")
    add("--dataloader_num_workers", type=int, default=0, help="processes per device that decode images; default: 0")
    add("--disable_tqdm", action="store_true", help="hide the progress bar")


def run(options: argparse.Namespace) -> ReferenceCache:
    """Make the cache, or finish an unfinished one, and print a line about it."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ValueError(
            f"WORLD_SIZE={started}, but accelerate uses {accelerator.num_processes} processes; start with "
            "`accelerate launch $(jest-hf preset ddp) -m jest_hf.cli cache-reference`."
        )
    start = time.perf_counter()
    rows = load_named(options)
    ranks, device = Ranks.world(), accelerator.device
    model, processor = load_reference(options.ref_model, options.ref_model_revision, ranks=ranks, device=device)
    identity = identify_reference(options.ref_model, model.config._commit_hash)  # the commit that was loaded
    if "commit" in identity:  # with the hashes too, by which a copy on a disk is the same reference
        identity = identify_reference(model) | identity
    placed = place_reference(model, accelerator)
    expose_temperature(model)
    data = Rows(rows, options.image_column)
    collator = JESTDataCollator(
        processor,
        image_column=options.image_column,
        caption_column=options.caption_column,
        max_length=options.max_length,
        scaled_jpeg_decoding=options.scaled_jpeg_decoding,
    )
    with accelerator.autocast():
        cache = write_cache(
            options.output_dir,
            DualEncoder(model.config, processor),
            placed,
            model.config,
            data,
            collator,
            reference=identity,
            batch_size=options.batch_size,
            dtype=options.dtype,
            shard_rows=options.shard_rows,
            precision=accelerator.mixed_precision,
            device=device,
            num_workers=options.dataloader_num_workers,
            disable_tqdm=options.disable_tqdm,
            ranks=ranks,
        )
    if accelerator.is_main_process:
        print(summary(cache.manifest, options.output_dir, time.perf_counter() - start))
    accelerator.end_training()
    broken = broken_rows(cache.manifest)
    said = mostly_broken(broken, len(data), collator, data)
    if said is not None and broken == len(data):
        raise SystemExit(f"{options.output_dir}: of the rows, {said}; the cache is of no use.")
    if said is not None:
        logger.error(f"{options.output_dir}: of the rows, {said}.")
    return cache


def broken_rows(manifest: dict[str, Any]) -> int:
    """Return the number of rows of a cache that could not be read."""
    return int(manifest["data"]["n_rows"] - sum(shard["readable"] for shard in manifest["shards"]))


def summary(manifest: dict[str, Any], folder: str, seconds: float) -> str:
    """Describe a cache in one line."""
    shards, n_rows = manifest["shards"], manifest["data"]["n_rows"]
    return (
        f"{folder}: {n_rows:,} rows ({broken_rows(manifest):,} broken), "
        f"{sum(shard['captions'] for shard in shards):,} captions, "
        f"width {manifest['width']}, {manifest['storage']['dtype']}, {len(shards)} shards, "
        f"{sum(shard['bytes'] for shard in shards) / 1e6:.1f} MB, {manifest['flops']:.2e} FLOPs, {seconds:.0f} s"
    )


__all__ = ["add_arguments", "run"]
