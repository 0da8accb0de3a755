# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
The command `jest-hf`.

    accelerate launch $(jest-hf preset zero2) train.py       starts a preset from any folder
    jest-hf cache-reference --ref_model ... --dataset ...    embeds a data set once (see [`jest_hf.reference.command`])
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


CONFIGS = Path(__file__).parent / "configs"
CACHE = "cache-reference"


def preset_names() -> list[str]:
    """Names of the presets for `accelerate launch`, sorted."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def preset_flags(name: str) -> str:
    """
    The flags of `accelerate launch` for a preset, with absolute paths.

    Args:
        name (`str`): one of [`preset_names`].
    """
    flags = f"--config_file {CONFIGS / name}.yaml"
    # The .yaml names this file relative to a clone of the repository; the flag goes before it.
    deepspeed = CONFIGS / f"{name}.json"
    return f"{flags} --deepspeed_config_file {deepspeed}" if deepspeed.exists() else flags


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `jest-hf`; `arguments` default to those of the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="jest-hf", description="Helpers around jest_hf.")
    commands = parser.add_subparsers(dest="command", required=True)
    preset = commands.add_parser("preset", help="print the flags of `accelerate launch` for a preset")
    preset.add_argument("name", choices=preset_names(), help="name of the preset")
    cache = commands.add_parser(CACHE, help="embed a data set with a reference, once for all runs")
    if CACHE in arguments[:1]:
        from jest_hf.reference import command  # torch and transformers: seconds that no other command should take

        command.add_arguments(cache)
        command.run(parser.parse_args(arguments))
    else:
        print(preset_flags(parser.parse_args(arguments).name))


if __name__ == "__main__":
    main()
