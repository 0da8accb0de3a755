# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Settings: sizes derived from them, and one clear error for each wrong one."""

from __future__ import annotations

import pytest

from jest_hf import JESTConfig


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
        ("remove_unused_columns", True),
        ("auto_find_batch_size", True),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_value(tmp_path, setting, value):
    with pytest.raises(ValueError, match=rf"^{setting}=.*{value}"):
        JESTConfig(output_dir=tmp_path, **{setting: value})
