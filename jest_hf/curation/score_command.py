# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`jest-hf score`: score a data set, in one process or, with `accelerate launch`, several.

    jest-hf score --learner runs/base --ref_model google/siglip2-base-patch16-224 --dataset "data/*.parquet" \\
        --output_dir scores
    jest-hf score --reference_cache cache --output_dir scores                the reference's losses; no image is read
    accelerate launch $(jest-hf preset ddp) -m jest_hf.cli score ...         the same flags
"""

from __future__ import annotations

import argparse
import time

from accelerate import PartialState

from jest_hf.curation.score_set import ScoreSet
from jest_hf.curation.scoring import score_dataset
from jest_hf.data import load_source
from jest_hf.data.sources import add_source_arguments, source_of
from jest_hf.losses import LOSSES
from jest_hf.reference.cache import SHARD_ROWS
from jest_hf.reference.shards import DTYPES


# Options of the data collator.
READING = ("image_column", "caption_column", "text_column", "label_column", "max_length", "scaled_jpeg_decoding")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command to a parser."""
    add = parser.add_argument
    add("--learner", help="Hub id or path of the model that is to be trained, or of a checkpoint of a run")
    add("--ref_model", help="Hub id or path of the reference; learnability needs a reference and a learner")
    add("--ref_model_revision", help="branch, tag or commit of a --ref_model on the Hub; default: main")
    add("--reference_cache", help="reference cache of the same data, in place of --ref_model; without --learner and "
        "--dataset no image is read")  # fmt: skip
    add_source_arguments(parser, "score", required=False, image_column=False)
    add("--image_column", help="column of the images; default: image")
    add("--caption_column", help="column of the captions; default: the first of text, caption and captions")
    add("--text_column", help="column of the texts of a text classifier or a language model; default: text")
    add("--label_column", help="column of the labels of a classifier; default: label")
    add("--max_length", type=int, help="tokens that captions or texts are padded to; default: each model's own length")
    add("--scaled_jpeg_decoding", action="store_true", help="decode large JPEGs at 1/2, 1/4 or 1/8 of their size")
    add("--output_dir", required=True, help="folder of the scores; shards that are finished there are kept")
    add("--batch_size", type=int, default=256, help="pairs in each random batch of the contrastive loss; default: 256")
    add("--draws", type=int, default=8, help="random batches for each row, whose losses are averaged; default: 8")
    add("--seed", type=int, default=0, help="seed of the random batches; default: 0")
    add("--loss", choices=list(LOSSES), help="contrastive loss; default: the one that the learner was made for")
    add("--dtype", choices=list(DTYPES), default="float16", help="dtype of the stored embeddings; default: float16")
    add("--per_device_batch_size", type=int, default=64, help="rows in a forward, on one device; default: 64")
    add("--shard_rows", type=int, default=SHARD_ROWS, help=f"rows in a shard; default: {SHARD_ROWS}")
    add("--dataloader_num_workers", type=int, default=0, help="processes per device that decode images; default: 0")
    add("--disable_tqdm", action="store_true", help="hide the progress bars")


def run(options: argparse.Namespace) -> ScoreSet:
    """Score the data, or finish unfinished scores, and print a line about them."""
    start = time.perf_counter()
    source = source_of(options)
    scores = score_dataset(
        load_source(**source) if "spec" in source else None,
        options.output_dir,
        learner=options.learner,
        ref_model=options.ref_model,
        ref_model_revision=options.ref_model_revision,
        reference_cache=options.reference_cache,
        batch_size=options.batch_size,
        draws=options.draws,
        seed=options.seed,
        loss=options.loss,
        dtype=options.dtype,
        per_device_batch_size=options.per_device_batch_size,
        shard_rows=options.shard_rows,
        num_workers=options.dataloader_num_workers,
        disable_tqdm=options.disable_tqdm,
        source=source,
        **{name: getattr(options, name) for name in READING},
    )
    state = PartialState()
    if state.is_main_process:
        print(summary(scores, time.perf_counter() - start))
    state.destroy_process_group()
    return scores


def summary(scores: ScoreSet, seconds: float) -> str:
    """Describe scores in one line."""
    found = f"{scores.folder}: {scores.n_rows:,} rows ({scores.n_broken:,} broken), {', '.join(scores.columns)}"
    if scores.stability:
        agreement = ", ".join(f"{name} {value:.3f}" for name, value in scores.stability.items())
        found += f"; rank correlation of two halves of the draws: {agreement}"
    return f"{found}; {seconds:.0f} s"


__all__ = ["add_arguments", "run"]
