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
from typing import TYPE_CHECKING

from jest_hf.flags import OF_SOURCE, add_source_arguments, source_of


if TYPE_CHECKING:
    from jest_hf.curation.score_set import ScoreSet


# Options of the data collator.
READING = ("image_column", "caption_column", "text_column", "label_column", "max_length", "scaled_jpeg_decoding")
RENAMED = {**OF_SOURCE, "num_workers": "dataloader_num_workers"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command to a parser."""
    add = parser.add_argument
    add(
        "--learner", help="Hub id or path of the model that is to be trained, or a checkpoint of a run. Default: none."
    )
    add("--ref_model", help="Hub id or path of the reference; learnability needs a reference and a learner. "
        "Default: none.")  # fmt: skip
    add("--ref_model_revision", help="Branch, tag or commit of a --ref_model on the Hub. Default: main.")
    add("--reference_cache", help="Reference cache of the same data, in place of --ref_model; without --learner and "
        "--dataset no image is read. Default: none.")  # fmt: skip
    add("--output_dir", required=True, help="Folder of the scores; shards that are finished there are kept.")
    add_source_arguments(parser, "score", required=False, image_column=False)
    add = parser.add_argument_group("reading").add_argument
    add("--image_column", help="Column of the images. Default: image.")
    add(
        "--caption_column",
        help="Column of the captions. Default: the first of text, caption, captions and txt.",
    )
    add("--text_column", help="Column of the texts of a text classifier or a language model. Default: text.")
    add("--label_column", help="Column of the labels of a classifier. Default: label.")
    add(
        "--max_length", type=int, help="Tokens that captions or texts are padded to. Default: each model's own length."
    )
    add("--scaled_jpeg_decoding", action="store_true",
        help="Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, other pixels.")  # fmt: skip
    add("--dataloader_num_workers", type=int, default=0,
        help="Processes on each device that decode images. Default: 0, the main process.")  # fmt: skip
    add = parser.add_argument_group("scores").add_argument
    add("--batch_size", type=int, default=256, help="Pairs in each random batch of the contrastive loss.")
    add("--draws", type=int, default=8, help="Random batches for each row, whose losses are averaged.")
    add("--seed", type=int, default=0, help="Seed of the random batches.")
    add("--loss", choices=("sigmoid", "softmax"),
        help="Contrastive loss. Default: the one that the learner was made for.")  # fmt: skip
    add("--dtype", choices=("float16", "float32"), default="float16", help="Dtype of the stored embeddings.")
    add("--per_device_batch_size", type=int, default=64, help="Rows in a forward, on one device.")
    add("--shard_rows", type=int, default=65536, help="Rows in a shard, the part that an interrupted command repeats.")
    add("--disable_tqdm", action="store_true", help="Hide the progress bars.")


def run(options: argparse.Namespace) -> ScoreSet:
    """Score the data, or finish unfinished scores, and print a line about them."""
    from accelerate import PartialState

    from jest_hf.curation.scoring import score_dataset
    from jest_hf.data.sources import load_named

    start = time.perf_counter()
    source = source_of(options)
    scores = score_dataset(
        load_named(options) if "spec" in source else None,
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
