# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/extending.md: they run, and they are the ones that the tests of this folder train with."""

from __future__ import annotations

import ast
import re
import sys
import types
from pathlib import Path

import pytest

from jest_hf.models import FAMILIES
from jest_hf.objectives import OBJECTIVES
from jest_hf.selection import CRITERIA, SELECTIONS


ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "extending.md").read_text(), re.MULTILINE | re.DOTALL)
TESTED = "\n".join(path.read_text() for path in sorted((ROOT / "tests" / "extensions").glob("test_*.py")))


def definitions(block: str) -> list[str]:
    """The classes of a block, and its constants, as they are written there."""
    lines, found = block.splitlines(), []
    for node in ast.parse(block).body:
        is_constant = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").isupper()
        if isinstance(node, ast.ClassDef) or is_constant:
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
            found.append("\n".join(lines[first - 1 : node.end_lineno]))
    return found


def test_every_definition_on_the_page_is_one_that_the_tests_train_with():
    found = [definition for block in BLOCKS for definition in definitions(block)]
    assert len(found) == 15
    for definition in found:
        assert f"\n{definition}\n" in TESTED


def test_the_blocks_run_in_order_and_register_what_they_define(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    added = {
        "half_reference": CRITERIA,
        "nearly_learned": CRITERIA,
        "middle": SELECTIONS,
        "newest": SELECTIONS,
        "tiny_pair": FAMILIES,
        "regression": OBJECTIVES,
    }
    for name, registry in added.items():
        assert name not in registry
        monkeypatch.setitem(registry, name, None)  # undone after the test
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look up the module of a class
    chosen = []
    for block in BLOCKS:
        exec(compile(block, "docs/extending.md", "exec"), module.__dict__)
        args = module.__dict__.pop("args", None)
        if args is not None:
            chosen.append((args.selection, args.criterion, args.objective))
    assert all(registry[name] is not None for name, registry in added.items())
    assert chosen == [
        ("joint", "half_reference", None),
        ("top_k", "nearly_learned", None),
        ("middle", "learnability", None),
        ("newest", "learnability", None),
        ("independent", "learnability", "regression"),
    ]


@pytest.mark.parametrize("name", ["half_reference", "middle", "tiny_pair", "regression"])
def test_nothing_of_it_is_left_behind(name):
    assert not any(name in registry for registry in (CRITERIA, SELECTIONS, FAMILIES, OBJECTIVES))
