# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The options of a run as flags: their groups in the help, and recipes below them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import pytest
from transformers import TrainingArguments

from jest_hf import JESTConfig
from jest_hf.config.command_line import GROUPS, HELPS, add_fields, fill, read_settings
from jest_hf.flags import Parser


@dataclass
class Arguments:
    """Of a script."""

    rate: float | None = field(default=None, metadata={"help": "Rate of something. Default: none."})
    size: int = field(default=3, metadata={"help": "Size of something."})


def made(**options) -> Parser:
    parser = Parser(prog="script.py")
    add_fields(parser, (Arguments, JESTConfig), {"data": ("rate",), "own": ("size",)}, **options)
    return parser


def shown(parser, *words, capsys) -> str:
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(words)
    return capsys.readouterr().out


def test_every_option_of_this_package_is_in_one_group():
    names = [name for some in GROUPS.values() for name in some]
    own = {one.name for one in fields(JESTConfig)} - {one.name for one in fields(TrainingArguments)}
    assert len(names) == len(set(names)) and own <= set(names) <= {one.name for one in fields(JESTConfig)}
    assert set(HELPS) == set(names) - own - {"label_smoothing_factor"}


def test_the_help_is_grouped_and_leaves_the_rest_to_help_all(capsys):
    text = shown(made(), "--help", capsys=capsys)
    titles = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["options", *(title for title in GROUPS if title not in ("models", "comparison")), "own"]
    assert (
        text.index("--rate X") < text.index("--filter_ratio X") < text.index("--push_to_hub") < text.index("--size N")
    )
    assert "--config RECIPE" in text and "--weight_decay" in text and "--adam_beta1" not in text
    assert "--filter-ratio" not in text  # which works too
    assert len(text.splitlines()) < 260
    everything = shown(made(), "--help-all", capsys=capsys)
    assert all(f"--{one.name} " in everything for one in fields(TrainingArguments) if one.init)


def test_defaults_are_shown(capsys):
    text = " ".join(shown(made(defaults={"output_dir": "jest-out"}), "--help", capsys=capsys).split())
    assert "Size of something. Default: 3." in text and "Default: jest-out." in text
    assert "Number of chunks in which joint selection draws the sub-batch. Default: 16." in text
    assert "without scoring. Default: 0." in text and "Default: None" not in text


def test_flags_win_over_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rate: 1e-4\nsize: 7\nfilter_ratio: 0.5\nuse_cpu: true\n")
    settings = read_settings(made(), ["--config", str(recipe), "--size", "8", "--cache_reference", "--n-chunks", "2"])
    assert settings == {
        **{"rate": 1e-4, "size": 8, "filter_ratio": 0.5},
        **{"use_cpu": True, "cache_reference": True, "n_chunks": 2},
    }
    assert fill(Arguments, settings) == Arguments(rate=1e-4, size=8)
    assert fill(JESTConfig, {**settings, "output_dir": str(tmp_path)}).n_chunks == 2
    assert read_settings(made(), [], recipe)["size"] == 7 and read_settings(made(), []) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filter_ration: 0.5", r"'filter_ration', which does not exist \(did you mean 'filter_ratio'\?\)"),
        ("help: 1", "'help', which does not exist"),
        ("- 1", "holds no settings"),
        ("a: [", "is not YAML"),
        ("size: seven", "has size: 'seven', which cannot be read"),
    ],
)
def test_a_recipe_that_is_wrong(tmp_path, content, message):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_settings(made(), ["--config", str(tmp_path / "recipe.yaml")])


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="--config .*no.yaml does not exist"):
        read_settings(made(), ["--config", str(tmp_path / "no.yaml")])
