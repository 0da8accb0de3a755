# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command `jest-hf`, from any folder:

    accelerate launch $(jest-hf preset zero2) train.py       launch a script with a preset
    jest-hf cache-reference --ref_model ... --dataset ...    embed a data set once
    jest-hf cache-images --model ... --dataset ...           decode and resize a data set once
    jest-hf report out --dataset ...                         a page of what a run has selected

See [`jest_hf.reference.command`], [`jest_hf.training.image_command`] and [`jest_hf.curation.report_command`].
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


CONFIGS = Path(__file__).parent / "configs"
# By command, its module (with `add_arguments` and `run`) and what it does.
COMMANDS = {
    "cache-reference": ("jest_hf.reference.command", "embed a data set with a reference, once for all runs"),
    "cache-images": (
        "jest_hf.training.image_command",
        "decode and resize the images of a data set, once for all runs",
    ),
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
        prog="jest-hf", description="Commands of jest_hf: launch presets, caches, and reports on runs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    preset = commands.add_parser("preset", help="print the flags for `accelerate launch`, e.g. preset zero2")
    preset.add_argument("name", choices=preset_names(), help="name of the preset")
    parsers = {name: commands.add_parser(name, help=about) for name, (_, about) in COMMANDS.items()}
    if arguments and (name := arguments[0]) in COMMANDS:
        # Imported here: torch and transformers take seconds, which other commands need not take.
        command = importlib.import_module(COMMANDS[name][0])
        command.add_arguments(parsers[name])
        command.run(parser.parse_args(arguments))
    else:
        print(preset_flags(parser.parse_args(arguments).name))


if __name__ == "__main__":
    main()
