# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Python on the pages and in docstrings: it compiles, its names and options exist, and the pages' blocks run.

Blocks run on stand-ins of the models and data that they name: keyword arguments and strings of the block are replaced
before it runs, and each replacement has to find something to replace.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
from collections import Counter
from typing import Any

import datasets
import pytest
import transformers
from transformers import Trainer

from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer
from tests.docs.pages import Block, blocks, docstring_blocks
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


ON_PAGES = blocks("python")
IN_DOCSTRINGS = docstring_blocks("python")

# How many blocks of a page are run below. Of the pages that are named last, README.md and docs/extending.md have tests
# of their own (test_readme_runs.py, tests/extensions), and the others show no more than the form of internal code.
RUN = {"docs/curate.md": 1, "docs/distributed.md": 1, "docs/family.md": 2}
NOT_RUN = {"README.md", "docs/extending.md", "docs/architecture.md", "CONTRIBUTING.md"}

FACES = ("", ".selection", ".losses", ".objectives", ".models", ".data", ".reference", ".evaluation", ".report")
FACES += (".hub", ".distributed", ".curation", ".config")


# What a block says


def problems(source: str) -> list[str]:
    """Imports that fail, and keyword arguments that a callable of jest_hf does not take."""
    if source.startswith(">>> "):
        source = "".join(example.source for example in doctest.DocTestParser().get_examples(source))
    tree = ast.parse(source)
    known, found = public_names(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    found.append(f"{node.module} has no {alias.name}")
                elif node.module.startswith("jest_hf"):
                    known[alias.asname or alias.name] = getattr(module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = called(call.func, known)
        taken = () if function is None else arguments_of(function)
        for keyword in call.keywords:
            if taken and keyword.arg not in taken:
                found.append(f"{ast.unparse(call.func)} does not take {keyword.arg}")
    return found


def public_names() -> dict[str, Any]:
    """All that jest_hf exports, by its short name."""
    found = {}
    for face in FACES:
        module = importlib.import_module(f"jest_hf{face}")
        for name in module.__all__:
            if name in vars(module) or name in ("JESTConfig", "JESTDataCollator", "JESTTrainer"):
                found.setdefault(name, getattr(module, name))
    for name in ("RetrievalMetric", "ZeroShotCallback", "ZeroShotMetric"):
        found[name] = getattr(importlib.import_module("jest_hf.evaluation"), name)
    return found


def called(node: ast.expr, known: dict[str, Any]) -> Any:
    """The callable that an expression names; `None` for what is not jest_hf's."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = called(node.value, known)
        return None if owner is None else getattr(owner, node.attr)
    return None


def arguments_of(function: Any) -> set[str]:
    """The names that a callable takes; none where it passes any keyword on."""
    parameters = inspect.signature(function).parameters
    if function is JESTTrainer:
        return {*parameters, *inspect.signature(Trainer).parameters}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return set()
    return set(parameters)


@pytest.mark.parametrize("block", [*ON_PAGES, *IN_DOCSTRINGS], ids=str)
def test_names_and_options_exist(block):
    assert problems(block.text) == []


def test_names_and_options_that_do_not_exist_are_seen():
    assert problems("from jest_hf import JESTConfig\nJESTConfig(output_dir='out', filter_ration=0.8)") == [
        "JESTConfig does not take filter_ration"
    ]
    assert problems("from jest_hf.selection import select_together") == ["jest_hf.selection has no select_together"]
    assert problems("JESTTrainer(model, args=args, ref_modell=x, callbacks=[])") == [
        "JESTTrainer does not take ref_modell"
    ]
    assert problems(">>> JESTTrainer(modell=x)\nan output") == ["JESTTrainer does not take modell"]
    assert problems("PairwiseScores.from_embeddings(learner=a, teacher=b)") == [
        "PairwiseScores.from_embeddings does not take teacher"
    ]


# Blocks that run


def test_every_block_of_a_page_runs_below():
    assert Counter(block.file for block in ON_PAGES if block.file not in NOT_RUN) == Counter(RUN)


class Replace(ast.NodeTransformer):
    """Other values for keyword arguments and strings."""

    def __init__(self, keywords: dict[str, Any], strings: dict[str, str]) -> None:
        self.keywords, self.strings, self.used = keywords, strings, set()

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        if node.arg in self.keywords:
            self.used.add(node.arg)
            return ast.keyword(node.arg, ast.Constant(self.keywords[node.arg]))
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if node.value in self.strings:
            self.used.add(node.value)
            return ast.Constant(self.strings[node.value])
        return node


def run(
    block: Block,
    names: dict[str, Any],
    keywords: dict[str, Any] | None = None,
    strings: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Run a block with `names` defined; returns all that is defined after it."""
    replace = Replace(keywords or {}, strings or {})
    tree = ast.fix_missing_locations(replace.visit(ast.parse(block.text)))
    assert replace.used == {*(keywords or {}), *(strings or {})}
    namespace = dict(names)
    exec(compile(tree, str(block), "exec"), namespace)
    return namespace


def block_of(page: str, number: int) -> Block:
    return [block for block in ON_PAGES if block.file == page][number]


@pytest.fixture
def saved(tmp_path):
    """Paths of a saved learner and a saved reference."""
    for seed, name in enumerate(("learner", "reference")):
        tiny_siglip(seed).save_pretrained(tmp_path / name)
        tiny_siglip_processor().save_pretrained(tmp_path / name)
    return str(tmp_path / "learner"), str(tmp_path / "reference")


def test_lora_block_trains(tmp_path, saved):
    pytest.importorskip("peft")
    after = run(
        block_of("docs/distributed.md", 0),
        {"JESTConfig": JESTConfig, "JESTTrainer": JESTTrainer, "rows": random_rows(64)},
        {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4},
        {"google/siglip2-so400m-patch14-224": saved[0]},
    )
    trainer = after["trainer"]
    trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    trainer.args.max_steps = 1
    assert trainer.train().global_step == 1


def test_scores_block_scores(tmp_path, saved):
    datasets.Dataset.from_list(random_rows(520)).to_parquet(tmp_path / "pairs.parquet")
    stand_ins = {
        "data/web/*.parquet": str(tmp_path / "*.parquet"),
        "scores": str(tmp_path / "scores"),
        "runs/base": saved[0],
        "google/siglip2-so400m-patch14-224": saved[1],
    }
    after = run(block_of("docs/curate.md", 0), {}, {}, stand_ins)
    assert after["scores"].n_rows == 520 and set(after["scores"].stability) == set(after["scores"].columns)


def test_preset_block_makes_a_proxy(tmp_path):
    names = {
        "learner": tiny_siglip(0),
        "small_reference": tiny_siglip(1),
        "rows": random_rows(64),
        "collator": JESTDataCollator(tiny_siglip_processor()),
    }
    names |= {"JESTConfig": JESTConfig, "JESTTrainer": JESTTrainer}
    trainer = run(block_of("docs/family.md", 0), names, {"output_dir": str(tmp_path)})["trainer"]
    assert (trainer.args.selection, trainer.args.scoring) == ("independent", "proxy")
    assert trainer.args.filter_ratio == 0.8  # the option given, not the preset's 0.5
    assert trainer.proxy is not None


def test_comparison_block_is_a_configuration(tmp_path):
    after = run(block_of("docs/family.md", 1), {"JESTConfig": JESTConfig}, {"output_dir": str(tmp_path)})
    assert after["args"].compare_selectors == ["uniform", "independent/learnability", "joint/easy_reference"]
    assert transformers.TrainingArguments in type(after["args"]).__mro__
