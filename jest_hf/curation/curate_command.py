# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`jest-hf curate`: a data set of the rows with the best scores, or of the rows that a run selected.

jest-hf curate scores --keep 0.2 --output curated                    copy the best fifth of the rows
jest-hf curate scores --keep 0.2 --list kept.parquet                 a list of these rows, for --subset
jest-hf curate runs/siglip --dataset "data/*.parquet" --output seen  all rows that a run selected
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from jest_hf.flags import OF_SOURCE, add_source_arguments, source_of


if TYPE_CHECKING:
    from jest_hf.curation.by_scores import Curated


RENAMED = {**OF_SOURCE, "output_dir": "output", "list_path": "list"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command to a parser."""
    add = parser.add_argument
    add("scores", help="Folder of `jest-hf score`, or output_dir of a run with --record_selection.")
    add = parser.add_argument_group("rows to keep").add_argument
    add("--keep", type=float, help="Share of the readable rows to keep, the best ones, e.g. 0.2. Default: --above "
        "decides.")  # fmt: skip
    add("--above", type=float, help="Keep the rows whose score is above this number. Default: of a run 0, all rows "
        "that the run selected; of scores --keep decides.")  # fmt: skip
    add("--per", help="Column; with --keep, keep that share of each value of the column, e.g. of each source. "
        "Default: of all rows together.")  # fmt: skip
    add("--criterion", choices=("learnability", "easy_reference", "hard_learner"),
        help="How scores rank rows. Default: learnability if there are both losses, otherwise the criterion of the "
        "loss that there is.")  # fmt: skip
    add("--run", help="output_dir of a run on the same data, whose selections are counted in a column times_selected. "
        "Default: none.")  # fmt: skip
    add("--by_key", action="store_true",
        help="Find the rows of a run by the data's own column example_id, as after training on a stream.")  # fmt: skip
    add = parser.add_argument_group("output").add_argument
    add("--output", help="New folder to write the kept rows to. Default: none; with --push_to_hub the name of the "
        "repository.")  # fmt: skip
    add("--format", choices=("parquet", "webdataset"), default="parquet", help="Kind of files in --output.")
    add("--list", help="Parquet file to write the list of kept rows to, for --subset; without --output no row is "
        "copied. Rows with a uid also get DataComp's .npy of uids. Default: none.")  # fmt: skip
    add("--push_to_hub", help="Data-set repository to push the kept rows to, e.g. me/curated. Default: none.")
    add("--private", action="store_true", default=None, help="Make a new repository private.")
    add("--license", help="Licence of the data for the data set card, e.g. cc-by-4.0. Default: none.")
    add = parser.add_argument_group("planned run").add_argument
    add("--steps", type=int, help="Steps of the planned run; with --batch_size, the card tells how often each row "
        "will be seen. Default: no plan.")  # fmt: skip
    add("--batch_size", type=int, help="Rows that the planned run trains on in a step, over all devices. "
        "Default: no plan.")  # fmt: skip
    purpose = "curate, where the scores do not name them"
    add_source_arguments(parser, purpose, required=False, image_column=False)


def run(options: argparse.Namespace) -> Curated:
    """Curate the data, and print what was kept."""
    from jest_hf.curation.by_scores import curate_dataset

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
