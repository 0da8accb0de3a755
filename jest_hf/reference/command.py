# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`jest-hf cache-reference`: embed a data set with a reference, on one process or, after `accelerate launch`, several.

    jest-hf cache-reference --ref_model google/siglip2-base-patch16-224 --dataset "data/*.parquet" --output_dir cache
    accelerate launch $(jest-hf preset ddp) -m jest_hf.cli cache-reference --ref_model ... (the same flags)

The flags that name data are those of `examples/run_jest.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import torch
from accelerate import Accelerator

from jest_hf.data import load_source
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.distributed import Ranks
from jest_hf.models import DualEncoder, expose_temperature
from jest_hf.reference.cache import SHARD_ROWS, write_cache
from jest_hf.reference.fingerprint import identify_reference
from jest_hf.reference.load import load_reference
from jest_hf.reference.place import place_reference
from jest_hf.reference.store import DTYPES, ReferenceCache


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = parser.add_argument
    add("--ref_model", required=True, help="Hub id or path of the reference")
    add("--ref_model_revision", help="branch, tag or commit of a Hub id")
    add("--dataset", required=True, help="scenes:<split>, a local file, glob or folder, or a Hub data set id")
    add("--dataset_split", help="its split")
    add("--dataset_where", type=json.loads, help='keep rows by column value, as JSON: {"split": "train"}')
    add("--max_train_rows", type=int, help="keep the first so many rows")
    add("--image_column", default="image", help="column of the images")
    add("--caption_column", help="column of the captions; default: text, caption or captions")
    add("--max_length", type=int, help="text tokens; default: the reference's own")
    add("--output_dir", required=True, help="folder of the cache; what is finished there is kept")
    add("--dtype", choices=list(DTYPES), default="float16", help="in which embeddings are kept")
    add("--batch_size", type=int, default=64, help="rows in a forward, on one device")
    add("--shard_rows", type=int, default=SHARD_ROWS, help="rows of a shard")
    add("--dataloader_num_workers", type=int, default=0, help="processes that decode images, for each device")
    add("--disable_tqdm", action="store_true", help="show no progress")


def run(options: argparse.Namespace) -> ReferenceCache:
    """Make the cache that the flags ask for, or finish it, and say in a line what it is."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ValueError(
            f"{started} processes were started, and accelerate knows of {accelerator.num_processes}; start with "
            "`accelerate launch $(jest-hf preset ddp) -m jest_hf.cli cache-reference`."
        )
    start = time.perf_counter()
    rows = load_source(
        options.dataset,
        split=options.dataset_split,
        where=options.dataset_where,
        max_rows=options.max_train_rows,
    )
    ranks, device = Ranks.world(), accelerator.device
    model, processor = load_reference(options.ref_model, options.ref_model_revision, ranks=ranks, device=device)
    identity = identify_reference(options.ref_model, model.config._commit_hash)  # of the commit that was loaded
    if "commit" in identity:  # a copy of it on a disk is the same reference
        identity = identify_reference(model) | identity
    model = place_reference(model, accelerator)
    expose_temperature(model)
    with accelerator.autocast():
        cache = write_cache(
            options.output_dir,
            DualEncoder(model.config, processor),
            model,
            model.config,
            Rows(rows, options.image_column),
            JESTDataCollator(
                processor,
                image_column=options.image_column,
                caption_column=options.caption_column,
                max_length=options.max_length,
            ),
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
    return cache


def summary(manifest: dict[str, Any], folder: str, seconds: float) -> str:
    """What the cache is, in a line."""
    shards, n_rows = manifest["shards"], manifest["data"]["n_rows"]
    broken = n_rows - sum(shard["readable"] for shard in shards)
    return (
        f"{folder}: {n_rows:,} rows ({broken:,} broken), {sum(shard['captions'] for shard in shards):,} captions, "
        f"width {manifest['width']}, {manifest['storage']['dtype']}, {len(shards)} shards, "
        f"{sum(shard['bytes'] for shard in shards) / 1e6:.1f} MB, {manifest['flops']:.2e} FLOPs, {seconds:.0f} s"
    )


__all__ = ["add_arguments", "run"]
