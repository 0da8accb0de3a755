# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Commands on the pages, in blocks and in inline code: the parser of what they start accepts them, and files exist.

Nothing is trained, installed or downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from jest_hf import cli
from tests.docs.pages import PAGES, ROOT, blocks, name_of, spans


# Scripts of the reader's own.
PLACEHOLDERS = {"train.py"}
PROGRAMS = ("accelerate", "jest-hf", "make", "pip", "python", "git", "pre-commit")


def commands_of(block: str) -> list[str]:
    """The commands of a block: one a line, continued after a backslash, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def all_commands() -> list:
    found = []
    for block in blocks("bash", "sh", "shell"):
        found += [pytest.param(command, id=f"{block}: {command[:60]}") for command in commands_of(block.text)]
    for page in PAGES:
        for span in spans(page):
            if re.match(rf"({'|'.join(PROGRAMS)}) [\w-]+", span) and span != "accelerate launch":
                # The name of a command alone stands for all that it can do.
                command = f"{span} --help" if re.fullmatch(r"jest-hf [\w-]+", span) else span
                found.append(pytest.param(command, id=f"{name_of(page)}: {span[:60]}"))
    return found


class Parsed(BaseException):
    """Raised in place of running a script whose arguments were accepted."""


def check(command: str, monkeypatch) -> None:
    """Raise for a command that would fail before it does anything."""
    monkeypatch.chdir(ROOT)
    with_flags = re.sub(r"\$\(jest-hf preset (\w+)\)", lambda match: cli.preset_flags(match[1]), command)
    words = shlex.split(with_flags)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "make":
        targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
        assert {word for word in arguments if "=" not in word} <= set(targets), command
    elif program == "accelerate":
        assert arguments[0] == "launch", command
        options = launch_command_parser().parse_args(arguments[1:])
        assert options.config_file is None or Path(options.config_file).is_file(), command
        script(options.training_script, options.training_script_args, options.module, monkeypatch)
    elif program == "python" and arguments[:2] != ["-m", "venv"]:
        module = arguments[0] == "-m"
        script(arguments[module], arguments[module + 1 :], module, monkeypatch)
    elif program == "jest-hf":
        script("jest_hf.cli", arguments, True, monkeypatch)
    elif program == "pip":
        assert arguments[0] == "install", command
        section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
        extras = re.findall(r"^(\w+) = \[", section.partition("\n[")[0], re.MULTILINE)
        for word in arguments[1:]:
            for extra in re.findall(r"\[([\w,]+)\]$", word):
                assert set(extra.split(",")) <= set(extras), command
    else:
        assert program in PROGRAMS, command


def script(name: str, arguments: list[str], is_module: bool, monkeypatch) -> None:
    """Let a script, or a module, parse its arguments."""
    if name in PLACEHOLDERS:
        return
    if is_module and not name.startswith("jest_hf"):
        assert importlib.util.find_spec(name), name
        return
    path = ROOT / (f"{name.replace('.', '/')}.py" if is_module else name)
    assert path.is_file(), name
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    if hasattr(module, "parse"):
        # Recipes for a GPU are read on machines without one, too.
        precision = ["--bf16", "False"] if arguments and path.stem.startswith("run_") else []
        module.parse([*arguments, *precision])
        return
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, args=None, namespace=None):
        original(parser, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with contextlib.redirect_stderr(io.StringIO()) as message:
        try:
            module.main()
        except Parsed:
            return
        except SystemExit as left:
            assert left.code == 0 and "--help" in arguments, message.getvalue()
            return
    pytest.fail(f"{name} parses no arguments")


@pytest.mark.parametrize("command", all_commands())
def test_command_is_accepted(command, monkeypatch):
    check(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "make tests",
        "accelerate launch examples/run_jests.py",
        "accelerate launch examples/run_jest.py --filter_ration 0.5 --config examples/recipes/demo.yaml",
        "accelerate launch examples/run_jest.py --config examples/recipes/demos.yaml",
        "accelerate launch --config_file jest_hf/configs/doubles.yaml train.py",
        "accelerate launch --num_process_es 8 train.py",
        "accelerate launch -m jest_hf.cli cache-reference --ref_model a --dataset b",
        "python benchmarks/flexi.py --stepps 3",
        "python benchmarks/flexy.py",
        "jest-hf preset zero9",
        'pip install ".[pefty]"',
        "rm -rf /",
    ],
)
def test_command_that_fails_is_seen(command, monkeypatch, capsys):
    with pytest.raises((AssertionError, ValueError, OSError, SystemExit, pytest.fail.Exception)):
        check(command, monkeypatch)
