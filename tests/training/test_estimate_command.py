# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`jest-hf estimate`: flags, recipes, errors and output. test_price.py compares its figures with counts."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, Siglip2Config, SiglipConfig

from jest_hf.cli import main
from jest_hf.models import View
from jest_hf.models.build import siglip_config
from jest_hf.reference.store import open_folder
from jest_hf.training import estimate_command
from jest_hf.training.price import cheaper_view
from tests.helpers import tiny_clip, tiny_siglip, tiny_siglip2
from tests.trainers import make_trainer


EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("--learner_size", "micro", "--per_device_train_batch_size", "16")
SO400M = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}


def estimated(capsys, *flags):
    capsys.readouterr()
    main(["estimate", "--json", *map(str, flags)])
    result = json.loads(capsys.readouterr().out)
    return result, {way["name"]: way for way in result["ways"]}


def refused(capsys, *flags):
    with pytest.raises(SystemExit) as left:
        main(["estimate", *map(str, flags)])
    return f"{left.value.code}{capsys.readouterr().err}"


def test_the_ways_side_by_side(capsys):
    result, ways = estimated(capsys, *SMALL, "--max_steps", 100, "--rows", 2000)
    assert list(ways) == [
        *("as set", "IID", "live reference", "cached reference", "two stages", "easy_reference", "Flexi")
    ]
    relative = {name: way["relative_to_iid"] for name, way in ways.items()}
    assert relative["IID"] == 1
    expected = {"live reference": 1 + 10 / 3, "cached reference": 1 + 5 / 3, "two stages": 1 + 2 / 3}
    for name, value in expected.items():
        assert relative[name] == pytest.approx(value, rel=0.01)
    assert 1 <= relative["easy_reference"] < 1.01 and 1 < relative["Flexi"] < relative["cached reference"]
    images = {name: way["decoded_images"] for name, way in ways.items()}
    assert images == {
        **{"as set": 80, "IID": 16, "live reference": 80, "cached reference": 80, "two stages": 32},
        **{"easy_reference": 16, "Flexi": 80},
    }
    assert (result["sub_batch"], result["super_batch"], result["n_steps"]) == (16, 80, 100)


def test_where_a_run_breaks_even(capsys):
    result, ways = estimated(capsys, *SMALL, "--max_steps", 100, "--rows", 2000)
    iid = 100 * ways["IID"]["flops_of_step"]
    cache = 2000 * result["forward"]["reference"]
    for name in ("live reference", "cached reference", "two stages"):
        way = ways[name]
        once = 0 if name == "live reference" else cache
        assert way["flops_of_run"] == pytest.approx(once + 100 * way["flops_of_step"])
        assert way["relative_of_run"] == pytest.approx(way["flops_of_run"] / iid)
        # With this share of the steps, cache included, the run costs what IID training costs.
        assert once + way["examples_share"] * 100 * way["flops_of_step"] == pytest.approx(iid)
    dear, ways = estimated(capsys, *SMALL, "--max_steps", 5, "--rows", 100_000)
    assert ways["cached reference"]["examples_share"] is None  # the cache alone costs more than 5 IID steps
    main(["estimate", *SMALL, "--max_steps", "5", "--rows", "100000"])
    assert capsys.readouterr().out.count("| never ") == 4


def test_what_is_not_known_is_left_out(capsys):
    result, ways = estimated(capsys, *SMALL, "--max_steps", 100)
    assert result["cache_bytes"] is None and ways["cached reference"]["flops_of_run"] is None
    assert ways["live reference"]["relative_of_run"] == ways["live reference"]["relative_to_iid"]
    result, ways = estimated(capsys, *SMALL)
    assert result["n_steps"] is None and ways["live reference"]["flops_of_run"] is None
    assert ways["live reference"]["examples_share"] == 1 / ways["live reference"]["relative_to_iid"]
    result, _ = estimated(capsys, *SMALL, "--rows", 1000, "--num_train_epochs", 2)
    assert result["n_steps"] == 2 * (1000 // 80)


def test_the_size_of_the_cache_and_of_the_super_batch(tmp_path, capsys):
    trainer = make_trainer(tmp_path / "run", cache_reference=True, max_steps=1)
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    tiny_siglip(0).config.save_pretrained(tmp_path / "model")
    flags = ("--learner", tmp_path / "model", "--per_device_train_batch_size", 8, "--filter_ratio", 0.75)
    result, _ = estimated(capsys, *flags, "--rows", 80, "--cache_reference", True)
    shards = open_folder(tmp_path / "run" / "reference_cache").manifest["shards"]
    # Offsets, marks of broken rows and digests take 25 bytes a row beside 2 x 32 numbers in float32.
    assert 2 * result["cache_bytes"] == pytest.approx(sum(one["bytes"] for one in shards) - 25 * 80, abs=600)
    ours = sum(value.nbytes for name, value in batch.items() if name in ("pixel_values", "input_ids"))
    assert result["super_batch_bytes"] == ours


def test_several_devices_are_one_larger_sub_batch(capsys):
    several, _ = estimated(capsys, *SMALL, "--devices", 4, "--max_steps", 10)
    one, _ = estimated(capsys, "--learner_size", "micro", "--per_device_train_batch_size", 64, "--max_steps", 10)
    assert several["ways"] == one["ways"]
    assert one["super_batch_bytes"] == 4 * several["super_batch_bytes"]


def test_flags_win_over_a_recipe(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "dataset: scenes:web\nfilter_ratio: 0.9\nlearner_size: micro\nmax_steps: 7\nlearning_rate: 1e-4\n"
    )
    result, _ = estimated(capsys, "--config", recipe, "--per_device_train_batch_size", 10)
    assert (result["sub_batch"], result["super_batch"], result["n_steps"]) == (10, 100, 7)
    result, _ = estimated(capsys, "--config", recipe, "--filter_ratio", 0.5, "--per_device_train_batch_size", 10)
    assert result["super_batch"] == 20


@pytest.mark.parametrize("recipe", ["demo", "flexi", "aced", "active_siglip"])
def test_the_recipes_of_the_examples(capsys, recipe):
    _, ways = estimated(capsys, "--config", EXAMPLES / "recipes" / f"{recipe}.yaml", "--rows", 20_000)
    assert ways["as set"]["flops_of_run"] > ways["IID"]["flops_of_run"] > 0


def test_every_flag_of_run_jest_is_a_flag_here(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    from run_jest import ScriptArguments

    theirs = {one.name for one in fields(ScriptArguments)}
    ours = {one.name for one in fields(estimate_command.EstimateArguments)}
    assert theirs <= ours | set(estimate_command.NOT_USED)
    assert not set(estimate_command.NOT_USED) - theirs


@pytest.mark.parametrize("flags, message", [
    (["--filter_ratio", "1.5"], r"--filter_ratio 1.5 must be in [0, 1)"),
    (["--scoring_view", "patch:9"], "view 'patch:9'"),
    (["--learner", "no/such/folder"], "--learner no/such/folder has no configuration"),
    (["--devices", "0"], "--devices 0 must be at least 1"),
    (["--learner_size", "giant"], "--learner_size"),
    (["--lora_r", "4"], "--lora_target_modules"),
    (["--filter_ration", "0.5"], "--filter_ration"),
    (["--learn", "a"], "--learn"),
    (["--config", "no.yaml"], "no.yaml"),
])  # fmt: skip
def test_errors_speak_in_flags(capsys, monkeypatch, flags, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message in refused(capsys, *SMALL, *flags)


def test_a_recipe_with_an_unknown_setting(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("filter_ration: 0.5\n")
    text = refused(capsys, "--config", tmp_path / "recipe.yaml")
    assert "'filter_ration', which does not exist (did you mean 'filter_ratio'?)" in text


def test_a_model_of_another_kind(tmp_path, capsys):
    BertConfig().save_pretrained(tmp_path)
    assert f"--ref_model {tmp_path} is a bert model" in refused(capsys, *SMALL, "--ref_model", tmp_path)


def test_the_table(capsys):
    main(["estimate", *SMALL, "--max_steps", "100", "--rows", "2000"])
    text = capsys.readouterr().out
    assert "Sub-batch 16, super-batch 80 on 1 device(s); steps: 100." in text
    assert "| two stages       | --cache_reference True --prefilter_ratio 0.6 --filter_ratio 0.5 |" in text
    assert "in float16 (jest-hf cache-reference)" in text and "fewer examples to break even" in text


def test_help_shows_the_flags_that_change_a_cost(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["estimate", "--help"])
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--learner", "--rows", "--scoring_view", "--max_steps", "--config"))
    assert "--weight_decay" not in text and "--reference_steps" not in text


@pytest.mark.parametrize("config, expected", [
    (SiglipConfig(), "patch:32"),
    (SiglipConfig(vision_config={"image_size": 384, "patch_size": 14}), "image:182"),
    (tiny_clip().config, "patch:16"),
    (SiglipConfig(vision_config={"image_size": 16, "patch_size": 16}), None),
    (tiny_siglip2().config, "num_patches:4"),
    (Siglip2Config(), "num_patches:64"),
])  # fmt: skip
def test_a_view_that_the_model_takes(config, expected):
    view = cheaper_view(config)
    assert view == (None if expected is None else View.parse(expected))


def test_large_models_are_counted_in_seconds(tmp_path, capsys):
    """A So400m at 384 pixels scores for a ViT-B: no weights are made, and what is imported once is not measured."""
    text = {**SO400M, "vocab_size": 32000, "max_position_embeddings": 64, "projection_size": 1152}
    ids = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}
    large = SiglipConfig(vision_config={**SO400M, "image_size": 384, "patch_size": 14}, text_config={**text, **ids})
    large.save_pretrained(tmp_path / "large")
    base = {"vocab_size": 32000, "max_position_embeddings": 64, **ids}
    siglip_config("base", base, image_size=224, patch_size=16).save_pretrained(tmp_path / "base")
    threads, start = torch.get_num_threads(), time.process_time()
    _, ways = estimated(capsys, "--learner", tmp_path / "base", "--ref_model", tmp_path / "large", "--max_steps", 10)
    assert threads == torch.get_num_threads() and time.process_time() - start < 5
    assert ways["live reference"]["relative_to_iid"] > 25


def test_the_settings_of_a_way_are_flags_that_make_it(capsys):
    _, ways = estimated(capsys, *SMALL, "--max_steps", 10, "--rows", 2000)
    for way in ways.values():
        _, others = estimated(capsys, *SMALL, "--max_steps", 10, "--rows", 2000, *way["setting"].split())
        assert {**others["as set"], "name": "", "setting": ""} == {**way, "name": "", "setting": ""}
