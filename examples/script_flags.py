# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of `run_jest.py` and `run_labelled.py`: groups of flags, recipes, and errors in one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jest_hf import JESTConfig
from jest_hf.config.command_line import add_fields, fill, read_settings
from jest_hf.flags import Parser, in_one_sentence


# Defaults of the scripts that differ from those of `JESTConfig`.
DEFAULTS = {"output_dir": "jest-out", "report_to": "none", "eval_strategy": "steps", "logging_steps": 20}

# The groups of the flags of `comparison.DataArguments` in `--help`.
GROUPS = {
    "data": (
        *("dataset", "dataset_split", "dataset_where", "max_train_rows", "subset", "streaming", "image_column"),
        *("scaled_jpeg_decoding", "eval_dataset", "eval_split", "eval_where"),
        *("test_dataset", "test_split", "test_where"),
    ),
    "models": (
        *("learner", "image_size", "vocab_size", "max_length", "proxy_model", "lora_r", "lora_target_modules"),
    ),
    "reference": (
        *("ref_model", "train_reference_on", "train_reference_split", "train_reference_where"),
        *("reference_steps", "reference_learning_rate"),
    ),
    "comparison": (
        *("compare_uniform_steps", "compare_uniform_learning_rate"),
        *("compare_learnability_steps", "compare_learnability_learning_rate"),
    ),
}


def flags_of(kind: type, groups: Mapping[str, Sequence[str]], **defaults: Any) -> Parser:
    """Return the parser of a script.

    Args:
        kind (`type`): The dataclass of the script's own arguments.
        groups (`Mapping`): Names of the script's own arguments by the title of their group in `--help`.
        defaults: Defaults that differ from those of `JESTConfig`, for the help.
    """
    script = sys.modules[kind.__module__]
    parser = Parser(prog=Path(script.__file__).name, description=script.__doc__.partition("\n")[0])
    both = {title: (*GROUPS.get(title, ()), *groups.get(title, ())) for title in {**GROUPS, **groups}}
    add_fields(parser, (kind, JESTConfig), both, defaults={**DEFAULTS, **defaults})
    return parser


def parse(parser: Parser, kind: type, argv: list[str], demonstration: Path, **defaults: Any) -> tuple[Any, JESTConfig]:
    """Read flags, a YAML recipe (flags win over it) and defaults; without any flag, the demonstration's recipe."""
    settings = read_settings(parser, argv, None if argv else demonstration)
    if settings.get("preset"):
        defaults.pop("selection", None)  # the preset sets it
    settings = {**DEFAULTS, **defaults, **settings}
    return fill(kind, settings), fill(JESTConfig, settings)


def run_script(main: Callable[[list[str]], None], kind: type) -> None:
    """Run a script as a command: an error that the user can mend is one sentence, in flags."""
    flags = [one.name for arguments in (kind, JESTConfig) for one in fields(arguments)]
    with in_one_sentence(Path(sys.argv[0]).name, flags, folder=Path(__file__).resolve().parent):
        main(sys.argv[1:])
