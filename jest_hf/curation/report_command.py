# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`jest-hf report`: one HTML page of what a run has selected.

    jest-hf report out --dataset "data/*.parquet" --output report.html

The flags for data have the names of those of `jest-hf cache-reference`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from jest_hf.flags import OF_SOURCE, add_source_arguments


if TYPE_CHECKING:
    from jest_hf.curation.page import RunReport


RENAMED = OF_SOURCE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command to a parser."""
    add = parser.add_argument
    add("run", metavar="RUN", help="output_dir of a run that was trained with --record_selection.")
    add("--output", default="report.html", help="File of the page.")
    purpose = "show pictures and captions of, which the run was trained on"
    add_source_arguments(parser, purpose, required=False)
    add(
        "--caption_column",
        help="Column of the captions. Default: the first of text, caption, captions and txt.",
    )
    add("--label_column", help="Column of the labels, for a table of classes. Default: label, if there is one.")


def run(options: argparse.Namespace) -> RunReport:
    """Write the page, and print a line about it."""
    from jest_hf.curation.report_on_run import run_report
    from jest_hf.data.sources import load_named
    from jest_hf.files import replacing

    output = Path(options.output)
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output {output}: the folder of the page does not exist; make it first.")
    dataset = None if options.dataset is None else load_named(options)
    report = run_report(
        options.run,
        dataset,
        image_column=options.image_column,
        caption_column=options.caption_column,
        label_column=options.label_column,
    )
    page = report.html().encode("utf-8", errors="replace")
    with replacing(output) as file:
        file.write(page)
    n_pictures = sum(picture.jpeg is not None for gallery in report.galleries for picture in gallery.pictures)
    print(f"{output}: {n_pictures} pictures, {len(report.figures)} plots, {len(page) / 1e6:.1f} MB")
    return report


__all__ = ["add_arguments", "run"]
