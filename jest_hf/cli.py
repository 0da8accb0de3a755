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

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from jest_hf.flags import Parser, in_one_sentence


CONFIGS = Path(__file__).parent / "configs"
# Modules with `add_arguments` and `run`, which imports torch and transformers: that takes seconds. `RENAMED` has the
# options of Python that have another name as a flag.
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
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        module, about = COMMANDS[words[0]]
        command = importlib.import_module(module)
        parser = Parser(prog=f"jest-hf {words[0]}", description=f"{about[0].upper()}{about[1:]}.")
        command.add_arguments(parser)
        options = parser.parse_args(words[1:])
        with in_one_sentence(parser.prog, [one.dest for one in parser._actions], command.RENAMED):
            _check_folder(getattr(options, "output_dir", None))
            command.run(options)
        return
    parser = Parser(
        prog="jest-hf",
        description="Commands of jest_hf: launch presets, caches, estimates of cost, scores, curation and reports.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    preset = commands.add_parser("preset", help="print the flags for `accelerate launch`, e.g. preset zero2")
    preset.add_argument("name", choices=preset_names(), help="Name of the preset.")
    for name, (_, about) in COMMANDS.items():
        commands.add_parser(name, help=about)
    print(preset_flags(parser.parse_args(words).name))


def _check_folder(folder: str | None) -> None:
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise FileExistsError(f"output_dir={folder!r} is a file; name a folder.")


if __name__ == "__main__":
    main()
