# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of `run_jest.py` and `run_labelled.py`: groups of flags, recipes, and errors in one sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jest_hf import JESTConfig
from jest_hf.config.command_line import add_fields, fill, read_settings
from jest_hf.flags import Parser, in_one_sentence


# Defaults of the scripts that differ from those of `JESTConfig`.
DEFAULTS = {"output_dir": "jest-out", "report_to": "none", "eval_strategy": "steps", "logging_steps": 20}

JSON = ("_where", "_config")  # endings of the names of flags whose values are JSON


@dataclass
class DataArguments:
    """The data and the models of a run; `JESTConfig` has all other options."""

    dataset: str = field(
        default="scenes:web",
        metadata={"help": "Training data: scenes:<split>, a local file, glob or folder, or a Hub data-set id."},
    )
    dataset_split: str | None = field(
        default=None, metadata={"help": "Split of --dataset, e.g. train. Default: the only split."}
    )
    dataset_where: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Keep only the rows of --dataset with these column values: {"split": "train"}. Default: all rows.',
            "metavar": "JSON",
        },
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Data to evaluate on during training, named like --dataset. Default: scenes:validation if "
            "--dataset is scenes, else none."
        },
    )
    eval_split: str | None = field(
        default=None, metadata={"help": "Split of --eval_dataset, e.g. validation. Default: the only split."}
    )
    eval_where: dict | str | None = field(
        default=None,
        metadata={
            "help": "Keep only the rows of --eval_dataset with these column values. Default: all rows.",
            "metavar": "JSON",
        },
    )
    test_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Data for the results after training, named like --dataset. Default: scenes:test if --dataset is "
            "scenes, else --eval_dataset."
        },
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split of --test_dataset, e.g. test. Default: the only split."}
    )
    test_where: dict | str | None = field(
        default=None,
        metadata={
            "help": "Keep only the rows of --test_dataset with these column values. Default: all rows.",
            "metavar": "JSON",
        },
    )
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Keep only this many rows of --dataset, the first ones. Default: all rows."}
    )
    subset: str | None = field(
        default=None,
        metadata={
            "help": "Keep only the rows of --dataset in this file, which `jest-hf curate --list` wrote. Default: all "
            "rows."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read --dataset as it comes, and store none of it: shuffled in a buffer of 1,000 rows, with "
            "--max_steps and --learner."
        },
    )
    image_column: str = field(
        default="image",
        metadata={"help": "Column of the images, or the first that exists of several: jpg;png;webp."},
    )
    scaled_jpeg_decoding: bool = field(
        default=False, metadata={"help": "Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, other pixels."}
    )

    learner: str | None = field(
        default=None,
        metadata={"help": "Hub id or path of the learner to start from. Default: a small one with random weights."},
    )
    image_size: int = field(
        default=32, metadata={"help": "Height and width of images in pixels, for a learner with random weights."}
    )
    vocab_size: int = field(
        default=2048,
        metadata={"help": "Vocabulary of the tokenizer that is trained for a learner with random weights."},
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Tokens that texts are padded to. Default: the learner's, or 20 with random weights."},
    )

    ref_model: str | None = field(
        default=None,
        metadata={"help": "Hub id or path of the reference. Default: trained first on --train_reference_on."},
    )
    proxy_model: str | None = field(
        default=None,
        metadata={"help": "Hub id or path of the proxy. Default: the reference's architecture, random weights."},
    )
    train_reference_on: str | None = field(
        default=None,
        metadata={
            "help": "Clean data to train a reference on first, without --ref_model; named like --dataset. Default: "
            "scenes:curated if --dataset is scenes, else none."
        },
    )
    train_reference_split: str | None = field(
        default=None, metadata={"help": "Split of --train_reference_on, e.g. train. Default: the only split."}
    )
    train_reference_where: dict | str | None = field(
        default=None,
        metadata={
            "help": "Keep only the rows of --train_reference_on with these column values. Default: all rows.",
            "metavar": "JSON",
        },
    )
    reference_steps: int = field(
        default=300, metadata={"help": "Number of steps to train the reference on --train_reference_on."}
    )
    reference_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate to train the reference on --train_reference_on."}
    )

    lora_r: int = field(
        default=0, metadata={"help": "Rank of LoRA adapters to train instead of all weights; 0 trains all weights."}
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Names of the layers with a LoRA adapter. Default: PEFT's for the model."}
    )

    compare_uniform_steps: int = field(
        default=0,
        metadata={"help": "Train the learner without selection too, for this many steps, and compare; 0: do not."},
    )
    compare_uniform_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the run without selection. Default: --learning_rate."}
    )
    compare_learnability_steps: int = field(
        default=0,
        metadata={"help": "Train the learner by learnability too, for this many steps, and compare; 0: do not."},
    )
    compare_learnability_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the run by learnability. Default: --learning_rate."}
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith(JSON) and isinstance(value, str):
                try:
                    setattr(self, name, json.loads(value))
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f'{name}={value!r} is not JSON ({error}), such as {{"split": "train"}}.'
                    ) from error
        if self.dataset.startswith("scenes"):
            self.eval_dataset = self.eval_dataset or "scenes:validation"
            self.test_dataset = self.test_dataset or "scenes:test"
            if self.ref_model is None:
                self.train_reference_on = self.train_reference_on or "scenes:curated"


# The groups of the flags of `DataArguments` in `--help`.
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


def run_script(main: Callable[[list[str]], Any], *kinds: type) -> None:
    """Run a script as a command: an error that the user can mend is one sentence. The options in it are flags where
    they are fields of `kinds`."""
    flags = [one.name for arguments in kinds for one in fields(arguments)]
    with in_one_sentence(Path(sys.argv[0]).name, flags, folder=Path(__file__).resolve().parent):
        main(sys.argv[1:])
