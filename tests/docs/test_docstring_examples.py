# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Examples in docstrings (`>>>`, inside a fenced block, as the site needs them) run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import re
import types

import pytest

from tests.docs.pages import ROOT, name_of


PROMPT = re.compile(r"^ *>>> ", re.MULTILINE)
FILES = [path for path in sorted((ROOT / "jest_hf").rglob("*.py")) if PROMPT.search(path.read_text())]


class Fenced(doctest.DocTestParser):
    """Takes the fences of Markdown as the empty lines that end an expected output."""

    def parse(self, string: str, name: str = "<string>") -> list:
        return super().parse(re.sub(r"^ *```.*$", "", string, flags=re.MULTILINE), name)


class Finder(doctest.DocTestFinder):
    """Finds a class in the file that defines it also where the class names a package above as its module."""

    def _from_module(self, module: types.ModuleType, item: object) -> bool:
        named = getattr(item, "__module__", None) or ""
        return super()._from_module(module, item) or module.__name__.startswith(f"{named}.")


def outcome(module: types.ModuleType) -> doctest.TestResults:
    """How many examples of a module failed, and how many ran."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in Finder(parser=Fenced()).find(module):
        runner.run(test)
    return runner.summarize()


# Where no file has an example, pytest reports one test as skipped.
@pytest.mark.parametrize("path", FILES, ids=[name_of(path) for path in FILES])
def test_examples_run(path):
    module = name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    failed, attempted = outcome(importlib.import_module(module))
    assert failed == 0
    assert attempted >= len(PROMPT.findall(path.read_text()))


def test_an_example_that_prints_something_else_is_seen(capsys):
    module = types.ModuleType("examples")
    docstring = "Add.\n\n```python\n>>> 1 + 1\n2\n>>> 1 + 2\n4\n```\n"
    exec(f"def function():\n    {docstring!r}", vars(module))
    failed, attempted = outcome(module)[:2]
    assert (failed, attempted) == (1, 2)
