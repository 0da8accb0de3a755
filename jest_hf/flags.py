# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of `jest-hf` and of the examples: parsers with a short help, and errors of one sentence in flags.

This module imports the standard library alone, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dis import opmap
from pathlib import Path
from typing import Any, NoReturn


TRACEBACK = "JEST_HF_TRACEBACK"  # environment variable: with a value, errors keep their traceback
EPILOG = f"An error is one sentence; with {TRACEBACK}=1 in the environment it keeps its traceback."
_METAVARS = {int: "N", float: "X", json.loads: "JSON", Path: "FILE"}
_KINDS = {"int": "a whole number", "float": "a number", "loads": 'JSON, such as {"split": "train"}'}


class Help(argparse.HelpFormatter):
    """Writes each flag once (`--eval_steps`, not `--eval-steps` too), and its default after its help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        every = action.option_strings
        names = [one for one in every if "-" not in one[2:] or f"--{one[2:].replace('-', '_')}" not in every]
        values = "" if action.nargs == 0 else " " + self._format_args(action, _metavar(action))
        return ", ".join(names) + values

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = getattr(action, "shown_default", action.default)
        silent = action.help is None or action.required or action.nargs == 0 or "Default: " in action.help
        if silent or default is None or default is False or default in (argparse.SUPPRESS, []):
            return action.help
        value = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{action.help} Default: {value.replace('%', '%%')}."


def _metavar(action: argparse.Action) -> str:
    if action.metavar is not None or action.choices is not None:
        return str(action.metavar or f"{{{','.join(map(str, action.choices or ()))}}}")
    if action.nargs == "?" and action.const is True:
        return "BOOL"
    kind: Any = action.type
    return _METAVARS.get(kind, "JSON" if kind is dict else "TEXT")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence that names the flag, and the flag or value that is probably meant."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options = {"formatter_class": Help, "allow_abbrev": False, "epilog": EPILOG, **options}
        super().__init__(*args, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; a flag that does not exist is an error before one that is missing."""
        words = sys.argv[1:] if args is None else list(args)
        flags = [word.partition("=")[0] for word in words if re.match("--[A-Za-z]", word)]
        unknown = [flag for flag in flags if flag not in self._option_string_actions]
        if unknown and self._subparsers is None:
            self.error(f"unrecognized arguments: {unknown[0]}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and a sentence in place of argparse's message."""
        self.exit(2, f"{self.prog}: {self._say(message)}\n")

    def _say(self, message: str) -> str:
        flags = {name: action for action in self._actions for name in action.option_strings}
        if message.startswith("unrecognized arguments: "):
            words = message.partition(": ")[2].split()
            wrong = next((word for word in words if word.startswith("--")), words[0]).partition("=")[0]
            return f"{wrong} does not exist{proposal(wrong, flags)}; {self.prog} --help lists the flags."
        if message.startswith("the following arguments are required: "):
            return f"{message.partition(': ')[2]} must be given."
        found = re.match(r"argument ([^\s:]+): invalid (choice|\w+ value): '?(.*?)'?( \(choose from .*)?$", message)
        if found is None:
            return message.removeprefix("argument ").rstrip(".") + "."
        name = found[1].split("/")[0]
        if found[2] != "choice":
            kind = found[2].removesuffix(" value")
            return f"{name} {found[3]} is not {_KINDS.get(kind, f'a {kind}')}."
        choices = [str(one) for one in (flags[name].choices if name in flags else self._choices(name)) or ()]
        return f"{name} {found[3]} is not known{proposal(found[3], choices)}; choose one of {', '.join(choices)}."

    def _choices(self, name: str) -> Any:
        return next((action.choices for action in self._actions if name in (action.dest, action.metavar)), ())


def proposal(name: str, known: Collection[str]) -> str:
    """Propose the known name that is nearest to a wrong one.

    Example:

    ```python
    >>> from jest_hf.flags import proposal
    >>> proposal("filter_ration", ["n_chunks", "filter_ratio"])
    ' (did you mean filter_ratio?)'
    >>> proposal("colour", ["n_chunks"])
    ''

    ```
    """
    bare = {one.lstrip("-"): one for one in known}
    near = difflib.get_close_matches(name.lstrip("-"), bare, n=1)
    return f" (did you mean {bare[near[0]]}?)" if near else ""


def in_flags(message: str, flags: Collection[str], renamed: Mapping[str, str] | None = None) -> str:
    """Write an error message about options as one about flags.

    Args:
        message (`str`): The message, in which options are written `name='value'`, or `name` if it has an underscore.
        flags (collection of `str`): Names of the options that are flags of the command.
        renamed (`Mapping[str, str]`, *optional*): Options that have another name as a flag.

    Example:

    ```python
    >>> from jest_hf.flags import in_flags
    >>> flags = ("filter_ratio", "criterion", "n_chunks")
    >>> in_flags("filter_ratio=1.5 must be in [0, 1): set criterion='hard_learner', or lower n_chunks.", flags)
    '--filter_ratio 1.5 must be in [0, 1): set --criterion hard_learner, or lower --n_chunks.'
    >>> in_flags("criterion='hard_learnr' is not known; choose one of hard_learner, learnability.", flags)
    '--criterion hard_learnr is not known (did you mean hard_learner?); choose one of hard_learner, learnability.'

    ```
    """
    known = {**{name: name for name in flags}, **(renamed or {})}
    if not known:
        return message
    names = "|".join(sorted(map(re.escape, known), key=len, reverse=True))
    values = r"""('[^']*'|"[^"]*"|\{[^}]*\}|\[[^\]]*\]|[^\s,;:)]*[^\s,;:.)])"""
    message = re.sub(rf"(?<![\w./-])({names})={values}", lambda one: _flag(known[one[1]], one[2]), message)
    message = re.sub(rf"(?<![\w./'-])(?=\w*_)({names})(?![\w/=])", lambda one: f"--{known[one[1]]}", message)
    message = re.sub(r" to (the data collator|\w+Collator) as (?=--)", " as ", message)
    return re.sub(
        r"(?<= )(\S+) is not known; choose one of ([^;]*)\.$",
        lambda one: f"{one[1]} is not known{proposal(one[1], one[2].split(', '))}; choose one of {one[2]}.",
        message,
    )


def _flag(name: str, value: str) -> str:
    bare = value[1:-1] if value[:1] in "'\"" and len(value) > 1 else value
    if value.startswith("{"):  # a dict, as JSON for the shell
        return f"--{name} '{value.replace(chr(39), chr(34))}'"
    if bare == "True":
        return f"--{name}"
    return f"--{name} {bare if bare and not re.search(r'[ ]', bare) else value}"


def is_users(error: BaseException, folder: Path | None = None) -> bool:
    """Return whether an error is about what the user has given, and not a bug: it needs no traceback.

    These are errors of the operating system and of the Hub (`OSError`), a package that is not installed, and errors
    that this package, or a script in `folder` (`Path`), raises itself, with a message for the user.
    """
    if isinstance(error, OSError):
        return True
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith("jest_hf")
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, ValueError | TypeError | ImportError):
        return False
    code = trace.tb_frame.f_code
    is_raised = code.co_code[trace.tb_lasti] == opmap["RAISE_VARARGS"]
    is_own = str(trace.tb_frame.f_globals.get("__name__", "")).startswith("jest_hf.")
    return is_raised and (is_own or (folder is not None and Path(code.co_filename).resolve().parent == folder))


@contextmanager
def in_one_sentence(
    prog: str,
    flags: Collection[str] = (),
    renamed: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[None]:
    """End the process with one sentence for an error that the user can mend; other errors keep their traceback.

    With `JEST_HF_TRACEBACK=1` in the environment all errors do.

    Args:
        prog (`str`): Name of the command, which begins the sentence.
        flags, renamed: As of [`in_flags`].
        folder (`Path`, *optional*): Folder of a script, whose own errors are those of the user too.

    Raises:
        SystemExit: with the sentence; the exit status is 1.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get(TRACEBACK) or not is_users(error, folder):
            raise
        raise SystemExit(f"{prog}: {in_flags(_sentence(error), flags, renamed)}") from error


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.strerror and error.filename is not None:
        return f"{os.fspath(error.filename)}: {error.strerror}."
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name:
        text += f"; install it with `pip install {error.name.partition('.')[0]}`"
    return text if text.endswith((".", "?", "!")) else f"{text}."


# Arguments of `load_source`, and the flags of [`add_source_arguments`] that set them.
OF_SOURCE = {
    "spec": "dataset",
    "split": "dataset_split",
    "where": "dataset_where",
    "max_rows": "max_train_rows",
    "subset": "subset",
}


def add_source_arguments(
    parser: argparse.ArgumentParser, purpose: str, *, required: bool = True, image_column: bool = True
) -> None:
    """Add the flags that name data, of the commands that read a data set once.

    Args:
        parser (`argparse.ArgumentParser`): The parser of a command.
        purpose (`str`): What the data are for, for the help text, such as `"embed"`.
        required (`bool`, *optional*, defaults to `True`): Whether the command needs `--dataset`.
        image_column (`bool`, *optional*, defaults to `True`): Whether to add `--image_column` too.
    """
    add = parser.add_argument_group("data").add_argument
    add(
        "--dataset",
        required=required,
        help=f"Data to {purpose}: scenes:<split>, a local file, glob or folder, or a Hub id."
        + ("" if required else " Default: none."),
    )
    add("--dataset_split", help="Split of --dataset, e.g. train. Default: the only split.")
    add("--dataset_where", type=json.loads,
        help='Keep only the rows with these column values: {"split": "train"} (JSON). Default: all rows.')  # fmt: skip
    add("--max_train_rows", type=int, help="Keep only this many rows, the first ones. Default: all rows.")
    add("--subset", help="Keep only the rows in this file, which `jest-hf curate --list` wrote. Default: all rows.")
    if image_column:
        add(
            "--image_column",
            default="image",
            help="Column of the images, or the first that exists of several: jpg;png;webp.",
        )


def source_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of [`~jest_hf.data.load_source`] that the flags name, without those that were left out."""
    named = {name: getattr(options, flag) for name, flag in OF_SOURCE.items()}
    return {name: value for name, value in named.items() if value is not None}


__all__ = ["EPILOG", "Help", "Parser", "TRACEBACK", "in_flags", "in_one_sentence", "is_users", "proposal"]
