# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a step costs, as a run counts it and as `jest-hf estimate` does, against the operations that PyTorch counts in
the same run; and what is said about it when a trainer is made."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipConfig, SiglipModel, TrainingArguments

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.cli import main
from tests.helpers import random_rows, tiny_siglip_processor
from tests.trainers import arguments


IMAGE, WORDS = 32, 16
TOWER = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}


def siglip(seed, layers=4):
    """Of several layers: an update of patch embeddings alone needs no gradient of the pixels."""
    torch.manual_seed(seed)
    tower = {**TOWER, "num_hidden_layers": layers}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = SiglipModel(
        SiglipConfig(
            vision_config={**tower, "image_size": IMAGE, "patch_size": 8},
            text_config={**tower, **ids, "vocab_size": 14, "max_position_embeddings": WORDS, "projection_size": 64},
            attn_implementation="eager",  # a fused one is not counted on every machine
        )
    )
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model


def frozen_image_tower(model):
    model.vision_model.requires_grad_(False)
    return model


LORA = {"options": {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}}
# The name changed with transformers.
_NEW = any(one.name == "activation_checkpointing" for one in fields(TrainingArguments))
_NAME = "activation_checkpointing" if _NEW else "gradient_checkpointing"
CHECKPOINTING = {_NAME: True, f"{_NAME}_kwargs": {"use_reentrant": False}}
ROWS = 96
SETUPS = {
    "live": {},
    "live, larger reference": {"reference": lambda: siglip(1, layers=8)},
    "cached": {"cache_reference": True},
    "two stages": {"cache_reference": True, "filter_ratio": 0.5, "prefilter_ratio": 0.5},
    "easy_reference": {"cache_reference": True, "criterion": "easy_reference"},
    "uniform": {"selection": "uniform"},
    "Flexi": {"cache_reference": True, "scoring_view": "patch:16"},
    "LoRA": LORA,
    "LoRA, backbone as reference": {**LORA, "reference": None, "settings": {"reference": "adapter"}},
    "LoRA, Flexi, checkpointing": {**LORA, **CHECKPOINTING, "scoring_view": "patch:16"},
    "online reference": {"reference": None, "settings": {"reference": "online"}},
    "proxy in chunks": {"scoring": "proxy", "gradient_cache_chunk_size": 4, "reference": lambda: siglip(1, layers=2)},
    "gradient caching": {"gradient_cache_chunk_size": 4},
    "gradient caching, Flexi": {"gradient_cache_chunk_size": 4, "scoring_view": "patch:16"},
    "gradient checkpointing": CHECKPOINTING,
    "frozen image tower": {"change": frozen_image_tower},
    "frozen image tower, gradient caching": {"change": frozen_image_tower, "gradient_cache_chunk_size": 4},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
}


def trainer_of(folder, setup):
    setup = {"reference": lambda: siglip(1), "change": lambda model: model, "options": {}, "settings": {}, **setup}
    change, reference = setup.pop("change"), setup.pop("reference")
    options, settings = setup.pop("options"), setup.pop("settings")
    return JESTTrainer(
        model=change(siglip(0)),
        ref_model=None if reference is None else reference(),
        args=arguments(folder, **{"max_steps": 1, **setup, **settings}),
        train_dataset=random_rows(ROWS, size=IMAGE),
        processing_class=tiny_siglip_processor(IMAGE, WORDS),
        **options,
    )


def flags_of(folder, setup):
    """The flags of `jest-hf estimate` for a set-up; `None` for what no flag says (a tower that is frozen)."""
    setup = {"reference": lambda: siglip(1), "settings": {}, "options": {}, **setup}
    reference = setup.pop("reference")
    if "change" in setup:
        return None
    settings = {**setup.pop("settings"), "learner": folder / "learner", "rows": ROWS, "max_steps": 1}
    siglip(0).config.save_pretrained(folder / "learner")
    if reference is not None:
        reference().config.save_pretrained(folder / "reference")
        settings["ref_model"] = folder / "reference"
    if setup.pop("options"):
        settings |= {"lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}
    settings = {"per_device_train_batch_size": 8, "filter_ratio": 0.75, **setup, **settings}
    flags = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{name}", *map(str, values)]
    return flags


@pytest.mark.parametrize("name", SETUPS)
def test_a_run_knows_what_it_costs(tmp_path, name, capsys):
    trainer = trainer_of(tmp_path, dict(SETUPS[name]))
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    counted = pytest.approx(counter.get_total_flops(), rel=0.02)
    assert trainer.run_flops.total == counted
    flags = flags_of(tmp_path, dict(SETUPS[name]))
    if flags is not None:
        capsys.readouterr()
        main(["estimate", "--json", *flags])
        way = json.loads(capsys.readouterr().out)["ways"][0]
        assert way["flops_of_run"] == counted
        assert way["relative_to_iid"] == pytest.approx(trainer.step_flops.relative_to_iid, rel=1e-6)


def test_the_log_has_the_flops_so_far_and_their_ratio_to_iid(tmp_path):
    trainer = trainer_of(tmp_path, {"cache_reference": True, "max_steps": 2})
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    cache, step = trainer.cache_flops, trainer.step_flops
    assert [entry["flops"] for entry in logs] == [cache + step.total, cache + 2 * step.total]
    ratios = [(cache + n * step.total) / (n * step.training) for n in (1, 2)]
    assert [entry["flops_relative_to_iid"] for entry in logs] == pytest.approx(ratios)
    assert trainer.state.log_history[-1]["flops_relative_to_iid"] == pytest.approx(ratios[-1])


SAID = re.compile(r"A step costs ([\d.]+) IID steps \(reference ([\d.]+), learner scoring ([\d.]+), training ([\d.]+)")


@pytest.fixture
def said(caplog, capsys):
    """What is said about the price of a run: its level, and the line. It is said once."""

    def take(folder, **setup):
        caplog.clear()
        with caplog.at_level("INFO", logger="jest_hf.training.price"):
            trainer = trainer_of(folder, setup)
        lines = [
            (record.levelname, record.getMessage()) for record in caplog.records if SAID.match(record.getMessage())
        ]
        lines += [("console", line) for line in capsys.readouterr().err.splitlines() if SAID.match(line)]
        return trainer, lines

    return take


def test_a_dear_step_is_a_warning_with_what_saves_most(tmp_path, said):
    trainer, [(level, line)] = said(tmp_path, reference=lambda: siglip(1, layers=8), max_steps=4)
    step = trainer.step_flops
    assert level == "WARNING"
    parts = [step.total, step.reference, step.scoring, step.training]
    assert [float(part) for part in SAID.match(line).groups()] == [round(part / step.training, 2) for part in parts]
    setting = r"(cache_reference=True|criterion='easy_reference' and cache_reference=True)"
    ways = re.findall(rf"{setting} \(([\d.]+), and ([\d.]+) IID steps once\)", line)
    assert [text for text, *_ in ways] == [
        "cache_reference=True",
        "criterion='easy_reference' and cache_reference=True",
    ]
    for options, (_, cost, once) in zip(({}, {"criterion": "easy_reference"}), ways, strict=True):
        other, _ = said(tmp_path, reference=lambda: siglip(1, layers=8), cache_reference=True, **options)
        assert other.step_flops.relative_to_iid == pytest.approx(float(cost), abs=0.005)
        assert other.cache_flops / other.step_flops.training == pytest.approx(float(once), abs=0.5)


def test_a_cache_is_not_named_where_it_costs_more_than_it_spares(tmp_path, said):
    """A cache embeds all 96 rows; 3 steps of 32 rows see as many, and 4 steps more."""
    assert "cache_reference" not in said(tmp_path, max_steps=3)[1][0][1]
    assert "cache_reference" in said(tmp_path, max_steps=4)[1][0][1]
    assert "cache_reference" in said(tmp_path, max_steps=-1, num_train_epochs=2)[1][0][1]


def test_where_nothing_can_be_cached_other_settings_are_named(tmp_path, said):
    _, [(level, line)] = said(tmp_path, reference=None, criterion="hard_learner", filter_ratio=0.9)
    assert level == "WARNING" and "cache_reference" not in line
    ways = re.findall(r"(scoring_view='patch:16'|filter_ratio=0.5) \(([\d.]+)\)", line)
    for text, cost in ways:
        name, value = text.split("=")
        options = {"criterion": "hard_learner", "filter_ratio": 0.9}
        options[name] = value.strip("'") if name == "scoring_view" else float(value)
        other, _ = said(tmp_path, reference=None, **options)
        assert other.step_flops.relative_to_iid == pytest.approx(float(cost), abs=0.005)
    assert len(ways) == 2


def test_a_cheap_step_is_a_line_on_the_console(tmp_path, said):
    row = 3 * IMAGE * IMAGE + 8 * WORDS
    _, [(level, line)] = said(tmp_path, cache_reference=True, disable_tqdm=False)
    assert level == "console" and "caching the reference costs 4 IID steps once" in line
    megabytes = float(re.search(r"The 32 decoded rows take ([\d.]+) MB on each device", line)[1])
    assert megabytes == pytest.approx(32 * row / 1e6, abs=0.06)
    _, [(level, line)] = said(tmp_path, filter_ratio=0.5, max_steps=7)
    assert level == "INFO" and "With cache_reference=True a step costs 1.67, and the cache 4 IID steps once" in line


def test_nothing_is_said_without_selection_or_on_another_process(tmp_path, said, monkeypatch):
    assert said(tmp_path, selection="uniform")[1] == []
    monkeypatch.setattr(JESTConfig, "process_index", 1)
    assert said(tmp_path)[1] == []
