# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Settings: sizes derived from them, and one clear error for each wrong one."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from jest_hf import JESTConfig


# The fields that are declared here; the inherited ones among them have another default.
DECLARED = [one for one in fields(JESTConfig) if one.name in vars(JESTConfig.__base__)["__annotations__"]]
INHERITED = {one.name for one in fields(TrainingArguments)}
OWN = [one for one in DECLARED if one.name not in INHERITED]


@pytest.mark.parametrize(
    ("filter_ratio", "sub_batch", "super_batch"),
    [(0.8, 256, 1280), (0.5, 256, 512), (0.9, 32768, 327680), (0.0, 7, 7)],
)
def test_super_batch_size_is_the_sub_batch_over_the_share_kept(tmp_path, filter_ratio, sub_batch, super_batch):
    args = JESTConfig(output_dir=tmp_path, filter_ratio=filter_ratio, per_device_train_batch_size=sub_batch)
    assert args.per_device_super_batch_size == super_batch


def test_uniform_selection_loads_only_what_it_trains_on(tmp_path):
    args = JESTConfig(output_dir=tmp_path, selection="uniform", filter_ratio=0.8, per_device_train_batch_size=32)
    assert args.per_device_super_batch_size == 32


def test_inherited_defaults_that_would_be_wrong_here(tmp_path):
    args = JESTConfig(output_dir=tmp_path, seed=7)
    assert args.remove_unused_columns is False
    assert args.label_names == []
    assert args.dataloader_drop_last is True
    assert args.adam_beta2 == 0.95
    assert args.data_seed == 7


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("filter_ratio", 1.0),
        ("filter_ratio", -0.1),
        ("filter_ratio", float("nan")),
        ("filter_ratio", 0.01),  # a super-batch of the sub-batch's size
        ("n_chunks", 0),
        ("n_chunks", 2.5),
        ("selection", "greedy"),
        ("criterion", "loss"),
        ("selection_scope", "node"),
        ("loss", "triplet"),
        ("selection_gain", 0.0),
        ("selection_gain", float("inf")),
        ("per_device_train_batch_size", 0),
        ("scoring_batch_size", 0),
        ("loss_tile_size", -1),
        ("gradient_accumulation_steps", 2),
        ("proxy_learning_rate", "fast"),
        ("filter_ratio", "1.5"),
        ("remove_unused_columns", True),
        ("auto_find_batch_size", True),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_value(tmp_path, setting, value):
    with pytest.raises(ValueError, match=rf"^{setting}=.*{value}"):
        JESTConfig(output_dir=tmp_path, **{setting: value})


def test_numbers_may_come_as_strings(tmp_path):
    """YAML reads `1e-4` as a string."""
    numbers = {
        "filter_ratio": "5e-1", "selection_gain": "2", "uniform_fraction": "0.1", "proxy_learning_rate": "1e-4",
        "online_reference_learning_rate": "1e-4", "distillation_weight": "1.5", "low_resolution_fraction": "0.25",
        "label_smoothing_factor": "0.1", "adam_beta2": "0.9", "learning_rate": "1e-3",
    }  # fmt: skip
    args = JESTConfig(output_dir=tmp_path, **numbers)
    for name, text in numbers.items():
        value = getattr(args, name)
        assert isinstance(value, float) and value == float(text), name


def test_a_lone_selector_is_a_list_of_one(tmp_path):
    assert JESTConfig(output_dir=tmp_path, compare_selectors="uniform").compare_selectors == ["uniform"]


@pytest.mark.parametrize(
    ("criterion", "selectors", "models"),
    [
        ("hard_learner", None, ("learner",)),
        ("easy_reference", ["uniform"], ("reference",)),
        ("hard_learner", ["uniform", "top_k/hard_learner"], ("learner",)),
        ("hard_learner", ["top_k/easy_reference"], ("learner", "reference")),
        ("easy_reference", ["joint/learnability"], ("learner", "reference")),
        ("learnability", None, ("learner", "reference")),
    ],
)
def test_the_models_that_criterion_and_compared_selectors_need_score(tmp_path, criterion, selectors, models):
    args = JESTConfig(output_dir=tmp_path, criterion=criterion, compare_selectors=selectors)
    assert args.scored_models == models
    assert args.uses_reference == ("reference" in models)


@pytest.mark.parametrize("option", DECLARED, ids=lambda option: option.name)
def test_the_help_of_an_option_can_be_read_alone(option):
    """`--help` shows one option after another; argparse formats the text with `%`."""
    text = option.metadata["help"]
    assert re.match(r"[A-Z]", text) and text.endswith(".") and "%" not in text
    assert not re.match(r"(Its|Of|It|Their|They|This|That|These)\b", text)


def test_the_help_gives_the_default_of_an_option_that_starts_as_none():
    silent = [one.name for one in DECLARED if one.default is None and "Default: " not in one.metadata["help"]]
    assert silent == []


def test_the_docstring_lists_the_options_in_their_order():
    entries = re.findall(r"^(\w+) \(", inspect.getdoc(JESTConfig), re.MULTILINE)
    assert entries == [one.name for one in OWN]


def test_a_pickle_has_neither_token_nor_folders_and_a_copy_has_both(tmp_path):
    """The Trainer saves a pickle of the arguments with each model, and pushes it."""
    import copy
    import pickle

    folder = tmp_path / "of the machine"
    args = JESTConfig(
        output_dir=str(folder / "out"), reference_cache=str(folder / "cache"), hub_token="hf_secret", seed=7
    )
    pickled = pickle.dumps(args)
    assert b"of the machine" not in pickled and b"hf_secret" not in pickled
    loaded = pickle.loads(pickled)
    assert (loaded.output_dir, loaded.reference_cache, loaded.seed) == ("out", "cache", 7)
    for copied in (copy.copy(args), copy.deepcopy(args)):
        assert type(copied) is JESTConfig and copied is not args
        assert (copied.output_dir, copied.hub_token) == (args.output_dir, "hf_secret")
        assert copied.to_dict() == args.to_dict()
