# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`jest-hf curate`: a data set of the rows with the best scores, or of the rows that a run selected.

jest-hf curate scores --keep 0.2 --output curated                    copy the best fifth of the rows
jest-hf curate scores --keep 0.2 --list kept.parquet                 a list of these rows, for --subset
jest-hf curate runs/siglip --dataset "data/*.parquet" --output seen  all rows that a run selected
"""

from __future__ import annotations

import argparse

from jest_hf.curation.by_scores import Curated, curate_dataset
from jest_hf.curation.writers import WRITERS
from jest_hf.data.sources import add_source_arguments, source_of
from jest_hf.selection import CRITERIA


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command to a parser."""
    add = parser.add_argument
    add("scores", help="folder of `jest-hf score`, or output_dir of a run with --record_selection")
    add("--keep", type=float, help="share of the readable rows to keep, the best ones, e.g. 0.2")
    add("--above", type=float, help="keep the rows whose score is above this number; default of a run: 0, all rows "
        "that the run selected")  # fmt: skip
    add("--per", help="column; with --keep, keep that share of each value of the column, e.g. of each source")
    add("--criterion", choices=list(CRITERIA), help="how scores rank rows; default: learnability if there are both "
        "losses, otherwise easy_reference or hard_learner")  # fmt: skip
    add("--run", help="output_dir of a run on the same data, whose selections are counted in a column times_selected")
    add("--by_key", action="store_true", help="the run trained on a stream, and knows rows by their own example_id")
    add("--output", help="folder to write the kept rows to; it must not exist")
    add("--format", choices=list(WRITERS), default="parquet", help="kind of files in --output; default: parquet")
    add("--list", help="Parquet file to write the list of kept rows to, for --subset; without --output no row is "
        "copied. Rows with a uid also get DataComp's .npy of uids")  # fmt: skip
    add("--push_to_hub", help="data-set repository to push the kept rows to, e.g. me/curated")
    add("--private", action="store_true", default=None, help="make a new repository private")
    add("--license", help="licence of the data for the data set card, e.g. cc-by-4.0")
    add("--steps", type=int, help="steps of the planned run; with --batch_size, the card tells how often rows repeat")
    add("--batch_size", type=int, help="rows that the planned run trains on in a step, over all devices")
    purpose = "curate, if the scores do not name the data"
    add_source_arguments(parser, purpose, required=False, image_column=False)


def run(options: argparse.Namespace) -> Curated:
    """Curate the data, and print what was kept."""
    source = source_of(options)
    if source and "spec" not in source:
        raise ValueError("--dataset_split, --dataset_where, --max_train_rows and --subset need --dataset.")
    curated = curate_dataset(
        options.scores,
        options.output,
        keep=options.keep,
        above=options.above,
        per=options.per,
        criterion=options.criterion,
        run=options.run,
        by_key=options.by_key,
        format=options.format,
        list_path=options.list,
        push_to_hub=options.push_to_hub,
        steps=options.steps,
        batch_size=options.batch_size,
        source=source,
        license=options.license,
        private=options.private,
    )
    print(summary(curated))
    return curated


def summary(curated: Curated) -> str:
    """Describe a curated data set in a few lines."""
    kept, broken = len(curated.kept), curated.n_rows - curated.n_readable
    lines = [
        f"{', '.join(map(str, curated.files))}: {kept:,} of {curated.n_rows:,} rows ({kept / curated.n_rows:.1%}; "
        f"{broken:,} broken)"
    ]
    lines += [curated.repeats] if curated.repeats else []
    lines += [f"pushed as commit {curated.commit}"] if curated.commit else []
    return "\n".join(lines)


__all__ = ["add_arguments", "run"]
