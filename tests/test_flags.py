# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Parsers and errors of the command line: one sentence for what the user can mend, a traceback for a bug."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from jest_hf.data import load_source
from jest_hf.flags import Parser, in_flags, in_one_sentence


FLAGS = ("filter_ratio", "output", "cache_reference", "selection")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("filter_ratio=1.5 is too much; lower filter_ratio.", "--filter_ratio 1.5 is too much; lower --filter_ratio."),
        ("set cache_reference=True, or not.", "set --cache_reference, or not."),
        ("output='my folder' exists", "--output 'my folder' exists"),
        ("list_path='a.txt' is no list", "--list a.txt is no list"),
        ("where={'a': ['b', 'c']} matches no row", """--dataset_where '{"a": ["b", "c"]}' matches no row"""),
        ("/tmp/filter_ratio/output=1 is a path, my-filter_ratio too", None),
        ("'filter_ratio' in quotes is a name of something else", None),
        (
            "selection='jont' is not known; choose one of joint, top_k.",
            "--selection jont is not known (did you mean joint?); choose one of joint, top_k.",
        ),
        (
            "--config r.yaml: selection='x' is not known; choose one of joint.",
            "--config r.yaml: --selection x is not known; choose one of joint.",
        ),
    ],
)
def test_messages_speak_in_flags(message, expected):
    renamed = {"list_path": "list", "where": "dataset_where"}
    assert in_flags(message, FLAGS, renamed) == (expected or message)
    assert in_flags(message, ()) == message


def parser() -> Parser:
    made = Parser(prog="command")
    made.add_argument("--dtype", choices=("float16", "float32"))
    made.add_argument("--keep", type=float)
    made.add_argument("--rows", type=int)
    made.add_argument("--where", type=json.loads)
    made.add_argument("--folder", required=True)
    return made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--kep 0.5", "command: --kep does not exist (did you mean --keep?); command --help lists the flags."),
        ("--kee=0.5", "command: --kee does not exist (did you mean --keep?); command --help lists the flags."),
        ("--colour 3", "command: --colour does not exist; command --help lists the flags."),
        ("", "command: --folder must be given."),
        ("--folder", "command: --folder: expected one argument."),
        ("--folder a b", "command: b does not exist; command --help lists the flags."),
        ("--dtype floot16", "command: --dtype floot16 is not known (did you mean float16?); choose one of float16, "
         "float32."),
        ("--keep much", "command: --keep much is not a number."),
        ("--rows 0.5", "command: --rows 0.5 is not a whole number."),
        ("--where {a}", 'command: --where {a} is not JSON, such as {"split": "train"}.'),
    ],
)  # fmt: skip
def test_wrong_flags(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(words.split())
    assert capsys.readouterr().err == message + "\n"


def raised(error, **options):
    """What a command says of an error; an exception that is no `SystemExit` would have a traceback."""
    with pytest.raises(SystemExit) as left:
        with in_one_sentence("command", **options):
            error()
    return left.value.code


def refuse(kind, message):
    def function():
        raise kind(message)

    return function


def test_errors_of_the_package_are_one_sentence():
    message = raised(lambda: load_source("scenes:web", max_rows=0), renamed={"max_rows": "max_train_rows"})
    assert message == "command: --max_train_rows 0 must be at least 1; leave --max_train_rows out to keep all rows."


def test_errors_of_the_system_are_one_sentence(tmp_path):
    message = raised(lambda: open(tmp_path / "nothing"))
    assert message == f"command: {tmp_path / 'nothing'}: No such file or directory."
    message = raised(refuse(OSError, "403 Forbidden: you may\n  not write"))
    assert message == "command: 403 Forbidden: you may not write."
    assert "No space left" in raised(lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left", "x")))


def test_a_package_that_is_missing_is_one_sentence():
    assert raised(lambda: __import__("no_such_package")) == (
        "command: No module named 'no_such_package'; install it with `pip install no_such_package`."
    )


@pytest.mark.parametrize(
    "bug",
    [
        lambda: int("a bug of a library"),
        lambda: {}["a bug"],
        lambda: load_source(None),
        lambda: load_source("scenes:web", max_rows="five"),
        refuse(ValueError, "raised outside of the package"),
        refuse(RuntimeError, "an engine"),
        lambda: __import__("jest_hf.no_such_module"),
    ],
    ids=["value", "key", "attribute", "type", "elsewhere", "engine", "module"],
)
def test_bugs_keep_their_traceback(bug):
    with pytest.raises(Exception) as left:
        with in_one_sentence("command"):
            bug()
    assert not isinstance(left.value, SystemExit)


def test_errors_of_a_script_are_one_sentence():
    folder = Path(__file__).resolve().parent
    assert raised(refuse(ValueError, "selection='x' is wrong"), flags=FLAGS, folder=folder) == (
        "command: --selection x is wrong."
    )


def test_the_environment_keeps_every_traceback(monkeypatch):
    monkeypatch.setenv("JEST_HF_TRACEBACK", "1")
    with pytest.raises(ValueError, match="max_rows=0"), in_one_sentence("command"):
        load_source("scenes:web", max_rows=0)
