# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command `jest-hf`, from any folder:

    accelerate launch $(jest-hf preset zero2) train.py       launch a script with a preset
    jest-hf cache-reference --ref_model ... --dataset ...    embed a data set once
    jest-hf cache-images --model ... --dataset ...           decode and resize a data set once
    jest-hf estimate --learner ... --ref_model ...           what a run will cost
    jest-hf score --learner ... --ref_model ... --dataset ...    losses and learnability of every row
    jest-hf curate scores --keep 0.2 --output curated        a data set of the best rows
    jest-hf report out --dataset ...                         a page of what a run has selected

The modules are in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


CONFIGS = Path(__file__).parent / "configs"
# Modules with `add_arguments` and `run`. They import torch and transformers, which takes seconds.
COMMANDS = {
    "cache-reference": ("jest_hf.reference.command", "embed a data set with a reference, once for all runs"),
    "cache-images": (
        "jest_hf.training.image_command",
        "decode and resize the images of a data set, once for all runs",
    ),
    "score": ("jest_hf.curation.score_command", "score every row of a data set, without training"),
    "curate": ("jest_hf.curation.curate_command", "make a data set of the rows with the best scores"),
    "estimate": ("jest_hf.training.estimate_command", "what a run will cost, from configurations alone"),
    "report": ("jest_hf.curation.report_command", "one HTML page of what a run has selected"),
}


def preset_names() -> list[str]:
    """Return the names of the presets for `accelerate launch`, sorted.

    Example:

    ```python
    >>> from jest_hf.cli import preset_names
    >>> "zero2" in preset_names()
    True

    ```
    """
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def preset_flags(name: str) -> str:
    """Return the flags of `accelerate launch` for a preset, with absolute paths.

    Args:
        name (`str`): One of [`preset_names`].
    """
    flags = f"--config_file {CONFIGS / name}.yaml"
    # The .yaml names this file relative to a clone of the repository; the flag overrides that.
    deepspeed = CONFIGS / f"{name}.json"
    return f"{flags} --deepspeed_config_file {deepspeed}" if deepspeed.exists() else flags


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command `jest-hf`; `arguments` default to those of the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="jest-hf",
        description="Commands of jest_hf: launch presets, caches, estimates of cost, scores, curation and reports.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    preset = commands.add_parser("preset", help="print the flags for `accelerate launch`, e.g. preset zero2")
    preset.add_argument("name", choices=preset_names(), help="name of the preset")
    parsers = {name: commands.add_parser(name, help=about) for name, (_, about) in COMMANDS.items()}
    named = next(iter(arguments), None)
    if named in COMMANDS:
        command = importlib.import_module(COMMANDS[named][0])
        command.add_arguments(parsers[named])
        command.run(parser.parse_args(arguments))
    else:
        print(preset_flags(parser.parse_args(arguments).name))


if __name__ == "__main__":
    main()
