# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Options that the pages name exist, and README's table of settings has their real defaults."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields

import pytest
from transformers import Trainer

from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer
from jest_hf.curation import CurationFilters
from tests.docs.pages import PAGES, ROOT, name_of, spans


OPTIONS = {field.name for field in fields(JESTConfig)}
ARGUMENTS = {name for kind in (JESTTrainer, Trainer, JESTDataCollator) for name in inspect.signature(kind).parameters}

# Of other libraries, of the environment, and of `Criterion`.
OTHERS = {"DS_ACCELERATOR", "blocking", "joint", "trust_remote_code", "weights_only"}

# What README's table says in words.
IN_WORDS = {"the model's own": None, "off": False, "-": None, "full": None, "the sub-batch": None}


def named_options(page_spans: list[str]) -> list[tuple[str, str | None]]:
    """What looks like `option=value` in inline code, also as one of several."""
    found = []
    for span in page_spans:
        match = re.fullmatch(r"([a-z]\w*)=(\S*|\"[^\"]*\")", span)
        if match and "/" not in match[1]:
            found.append((match[1], match[2] or None))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_inline_code_exist(page):
    for name, value in named_options(spans(page)):
        assert name in OPTIONS | ARGUMENTS | OTHERS, f"{name}={value}"


CHOICES = ("selection", "criterion", "preset", "scoring", "reference", "objective", "loss", "loss_exchange")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_choices_in_inline_code_are_accepted(page, tmp_path):
    for name, value in named_options(spans(page)):
        if name in CHOICES and value:
            JESTConfig(output_dir=str(tmp_path), **{name: ast.literal_eval(value)}, **needs(name, value))


def needs(name: str, value: str) -> dict[str, str]:
    """What a choice needs beside it."""
    return {"selection": "independent"} if (name, value) == ("objective", '"classification"') else {}


def test_a_choice_that_does_not_exist_is_seen(tmp_path):
    assert named_options(['selection="jointly"', "make test", "n_chunks"]) == [("selection", '"jointly"')]
    with pytest.raises(ValueError, match="jointly"):
        JESTConfig(output_dir=str(tmp_path), selection="jointly")


def settings_table() -> dict[str, str]:
    """The option and the default of each row in README's table."""
    text = (ROOT / "README.md").read_text()
    rows = re.search(r"^\| setting \| default \| meaning \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)[1]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]
    return {name.strip("`"): default.strip("`") for name, default, _ in cells}


def test_the_table_of_settings_has_the_defaults(tmp_path):
    config = JESTConfig(output_dir=str(tmp_path))
    table = settings_table()
    assert len(table) >= 10
    for name, default in table.items():
        value = getattr(config, name)
        assert value == IN_WORDS[default] if default in IN_WORDS else str(value) == default, name


def test_the_table_of_layers_is_the_contract():
    rows = re.findall(r"^\| \d+ \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    documented = [set(re.findall(r"`(\w+)(?:/|\.py)`", row)) - {"__init__"} for row in rows]
    contract = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)[1]
    assert documented == [set(line.split(" | ")) for line in re.findall(r'"(.*)"', contract)]


def test_the_recipe_and_the_filters_have_the_documented_names():
    rows = re.findall(r"^\| (`.*?`) .*\|", (ROOT / "docs" / "bootstrap.md").read_text(), re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([a-z_]+)", row.partition(" | ")[0])}
    recipe = (ROOT / "examples" / "bootstrap_reference.py").read_text()
    known = set(re.findall(r"^    (\w+): ", recipe, re.MULTILINE)) | {field.name for field in fields(CurationFilters)}
    assert len(names) > 15 and names <= known
