# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command `jest-hf`: `accelerate launch $(jest-hf preset zero2) train.py` starts a preset from any folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


CONFIGS = Path(__file__).parent / "configs"


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
    parser = argparse.ArgumentParser(prog="jest-hf", description="Helpers around jest_hf.")
    commands = parser.add_subparsers(dest="command", required=True)
    preset = commands.add_parser("preset", help="print the flags of `accelerate launch` for a preset")
    preset.add_argument("name", choices=preset_names(), help="name of the preset")
    print(preset_flags(parser.parse_args(arguments).name))
