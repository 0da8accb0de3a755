# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The presets as files, and the command that finds them. tests/distributed/test_engines.py launches them."""

from __future__ import annotations

import json

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from jest_hf.cli import CONFIGS, main, preset_flags, preset_names


NAMES = ["ddp", "fsdp2", "single", "zero1", "zero2", "zero3", "zero3_offload"]
ZERO = [name for name in NAMES if name.startswith("zero")]


def read(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def test_the_presets_are_these():
    assert preset_names() == NAMES
    assert sorted(path.stem for path in CONFIGS.glob("*.json")) == ZERO


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_is_for(name):
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert text.startswith("# accelerate preset: ")
    assert name == "single" or "\n# Size: " in text
    assert f"jest_hf/configs/{name}.yaml" in text


@pytest.mark.parametrize("name", ZERO)
def test_deepspeed_settings_are_numbers_where_siglip_leaves_auto_undefined(name):
    settings = json.loads((CONFIGS / f"{name}.json").read_text())
    zero = settings["zero_optimization"]
    assert zero["stage"] == int(name[4])
    assert "auto" not in zero.values() and isinstance(zero["reduce_bucket_size"], int)
    assert settings["bf16"]["enabled"] == settings["gradient_clipping"] == "auto"
    if zero["stage"] == 3:
        assert zero["stage3_gather_16bit_weights_on_model_save"] is True
        assert isinstance(zero["stage3_prefetch_bucket_size"], int)
    if name == "zero3_offload":
        assert settings["zero_force_ds_cpu_optimizer"] is False
    # accelerate refuses settings in both files, and the .yaml finds the .json from a clone's root.
    assert read(name)["deepspeed_config"]["deepspeed_config_file"] == f"jest_hf/configs/{name}.json"
    assert "mixed_precision" not in read(name)


def test_fsdp2_leaves_the_layers_to_the_model_and_saves_whole_checkpoints():
    settings = read("fsdp2")["fsdp_config"]
    assert settings["fsdp_version"] == 2
    assert settings["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert "fsdp_transformer_layer_cls_to_wrap" not in settings
    assert settings["fsdp_state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.parametrize("name", NAMES)
def test_the_command_prints_flags_that_work_from_anywhere(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main(["preset", name])
    printed = capsys.readouterr().out.strip()
    assert printed == preset_flags(name)
    parsed = launch_command_parser().parse_args([*printed.split(), "train.py"])
    assert parsed.config_file == str(CONFIGS / f"{name}.yaml") and parsed.training_script == "train.py"
    assert parsed.deepspeed_config_file == (str(CONFIGS / f"{name}.json") if name in ZERO else None)


def test_a_wrong_name_gets_the_list_of_names(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["preset", "zero4"])
    said = capsys.readouterr()
    assert not said.out
    assert all(name in said.err for name in NAMES)
