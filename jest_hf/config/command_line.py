# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The fields of `JESTConfig` and of a script as flags: grouped by purpose in `--help`, with a YAML recipe below them.

`HfArgumentParser` makes the flags of dataclasses. Here they get groups, their defaults leave the parser, so that a
recipe can set what no flag does, and the Trainer's options that a run seldom needs wait for `--help-all`.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from jest_hf.flags import proposal


# Titles of the groups in `--help`, in order, with the options of `JESTConfig` in them. A script adds its own.
GROUPS: dict[str, tuple[str, ...]] = {
    "data": (),
    "models": (),
    "selection": (
        *("preset", "selection", "criterion", "filter_ratio", "prefilter_ratio", "n_chunks", "selection_gain"),
        *("selection_precision", "selection_scope", "uniform_fraction", "selection_warmup_steps"),
        *("filter_ratio_ramp_steps", "compare_selectors", "source_column"),
    ),
    "reference": (
        *("reference", "ref_model_revision", "online_reference_learning_rate", "ref_placement", "cache_reference"),
        *("reference_cache", "reference_cache_revision"),
    ),
    "scoring and loss": (
        *("objective", "scoring", "proxy_learning_rate", "pair_score", "loss", "distillation_weight"),
        *("label_smoothing_factor", "scoring_batch_size", "gradient_cache_chunk_size", "loss_exchange"),
        "loss_tile_size",
    ),
    "resolution (Flexi-JEST)": ("scoring_view", "low_resolution_fraction", "eval_at_view"),
    "loading": ("select_before_decoding", "image_cache", "dataloader_num_workers"),
    "training": (
        *("output_dir", "per_device_train_batch_size", "max_steps", "num_train_epochs", "learning_rate"),
        *("lr_scheduler_type", "warmup_steps", "weight_decay", "bf16", "activation_checkpointing", "seed", "use_cpu"),
        *("save_steps", "resume_from_checkpoint"),
    ),
    "evaluation and records": (
        *("eval_strategy", "eval_steps", "per_device_eval_batch_size", "eval_group_column", "record_selection"),
        *("logging_steps", "report_to"),
    ),
    "publishing": ("push_to_hub", "hub_model_id", "hub_private_repo"),
    "comparison": (),
}
REST = "further options of the Trainer"  # those that `--help-all` shows

# What the Trainer's options in the groups mean here.
HELPS = {
    "dataloader_num_workers": "Processes on each device that read and decode images. Default: 0, the main one.",
    "output_dir": "Folder of the trained model, checkpoints and records.",
    "per_device_train_batch_size": "Size of the sub-batch on each device: the examples that a step trains on.",
    "max_steps": "Number of training steps. Default: --num_train_epochs decides.",
    "num_train_epochs": "Number of passes over the data, without --max_steps.",
    "learning_rate": "Peak learning rate of the learner.",
    "lr_scheduler_type": "Schedule of the learning rate, e.g. cosine or constant_with_warmup.",
    "warmup_steps": "Steps in which the learning rate rises from 0; a number below 1 is a share of all steps.",
    "weight_decay": "Weight decay of the optimizer; biases, norms and the temperature have none.",
    "bf16": "Train and score in bfloat16 mixed precision.",
    "activation_checkpointing": "Recompute activations in the backward pass: less memory, more time. Default: off.",
    "seed": "Seed of new weights, of the order of the data, and of the selection.",
    "use_cpu": "Train on the CPU, also where there is a GPU.",
    "save_steps": "Number of steps between two checkpoints; a number below 1 is a share of all steps.",
    "resume_from_checkpoint": "Checkpoint to resume from, or True for the last one in --output_dir. Default: none.",
    "eval_strategy": "When to evaluate: no, steps or epoch.",
    "eval_steps": "Number of steps between two evaluations. Default: --logging_steps.",
    "per_device_eval_batch_size": "Rows in a forward of an evaluation, on each device.",
    "logging_steps": "Number of steps between two logs; a number below 1 is a share of all steps.",
    "report_to": "Trackers that get the logs: tensorboard, wandb and others, all or none.",
    "push_to_hub": "Push the model, with its card, to the Hub when it is saved.",
    "hub_model_id": "Repository on the Hub to push to, e.g. me/model. Default: the name of --output_dir.",
    "hub_private_repo": "Make a new repository private. Default: public, or as the organization has it.",
}


class _HelpAll(argparse.Action):
    """Prints the help with the flags that `--help` leaves out."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        about = "Show all flags, with those of the Trainer that a run seldom needs, and exit."
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=about, default=argparse.SUPPRESS)
        self.hidden: list[tuple[argparse.Action, str | None]] = []

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        for action, text in self.hidden:
            action.help = text
        parser.print_help()
        parser.exit()


def add_fields(
    parser: argparse.ArgumentParser,
    kinds: Sequence[type],
    groups: Mapping[str, Sequence[str]] | None = None,
    hidden: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add `--config`, `--help-all`, and a flag for each field of some dataclasses, in groups.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command. A flag that is not given gets no value.
        kinds (sequence of `type`): Dataclasses, as for `HfArgumentParser`.
        groups (`Mapping`, *optional*): Names of fields by the title of their group, added to those of `GROUPS`.
        hidden (collection of `str`, *optional*): Fields to leave out of `--help`, besides those in no group.
        defaults (`Mapping`, *optional*): Defaults of the command that differ from those of the fields, for the help.
    """
    parser.usage = "%(prog)s [--config RECIPE] [--flag value ...]"
    parser.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="RECIPE",
        help="YAML file with the names of the flags, and values; a flag wins over it. Default: none.")  # fmt: skip
    everything = parser.add_argument("--help-all", action=_HelpAll)
    assert isinstance(everything, _HelpAll)
    own = groups or {}
    titles = {title: (*own.get(title, ()), *names) for title, names in GROUPS.items()}
    titles |= {title: tuple(names) for title, names in own.items() if title not in titles}
    title_of = {name: title for title, names in titles.items() for name in names}
    places = {title: parser.add_argument_group(title) for title in (*titles, REST)}
    order = list(title_of)
    made: Any = HfArgumentParser(tuple(kinds), add_help=False)  # type: ignore[arg-type]
    for action in sorted(made._actions, key=lambda one: order.index(one.dest) if one.dest in title_of else 0):
        action.help = HELPS.get(action.dest, action.help)
        default = (defaults or {}).get(action.dest, _default_of(kinds, action.dest))
        action.shown_default, action.default = default, argparse.SUPPRESS
        if getattr(action.type, "__name__", "") == "string_to_bool" and action.nargs is None:
            action.nargs, action.const = "?", True  # `bool | None`: the flag alone means True
        if action.dest not in title_of or action.dest in hidden:
            everything.hidden.append((action, action.help))
            action.help = argparse.SUPPRESS
        places[title_of.get(action.dest, REST)]._add_action(action)


def _default_of(kinds: Sequence[type], name: str) -> Any:
    field = next(one for kind in kinds for one in fields(kind) if one.name == name)
    if field.default is MISSING:
        return None
    return getattr(field.default, "value", field.default)


def read_settings(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    recipe: Path | None = None,
) -> dict[str, Any]:
    """Return what flags and recipe set, by name; flags win.

    Args:
        parser (`argparse.ArgumentParser`): A parser with the flags of [`add_fields`].
        argv (sequence of `str`, *optional*): The words of the command line. Default: those of the process.
        recipe (`Path`, *optional*): Recipe to read without `--config`.
    """
    given = vars(parser.parse_args(argv))
    path = given.pop("config", recipe)
    return {**({} if path is None else read_recipe(path, parser)), **given}


def read_recipe(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Read a YAML recipe whose names are those of flags.

    Args:
        path (`Path`): The file.
        parser (`argparse.ArgumentParser`): The parser with the flags. Their types turn strings into values: YAML
            reads `1e-4` as a string.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no YAML mapping, a name that is no flag, or a value of another type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} does not exist; check the path.")
    try:
        settings: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not YAML ({' '.join(str(error).split())}); mend the file.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path} holds no settings; write a line `name: value` for each of them.")
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    known = actions.keys() - {"config", "help"}
    for name in settings:
        if name not in known:
            near = proposal(repr(name), [repr(one) for one in known])
            raise ValueError(
                f"--config {path} has the setting {name!r}, which does not exist{near}; correct its name."
            )
    return {name: _converted(value, actions[name], path) for name, value in settings.items()}


def _converted(value: Any, action: argparse.Action, path: Path) -> Any:
    if not isinstance(value, str) or not callable(action.type):
        return value
    try:
        return action.type(value)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"--config {path} has {action.dest}: {value!r}, which cannot be read; correct it.") from error


def fill(kind: type, settings: Mapping[str, Any]) -> Any:
    """Make a dataclass of the settings that are its fields."""
    return kind(**{one.name: settings[one.name] for one in fields(kind) if one.init and one.name in settings})


__all__ = ["GROUPS", "HELPS", "add_fields", "fill", "read_recipe", "read_settings"]
