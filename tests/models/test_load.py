# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A model that is loaded by name is whole, and no code from its folder runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jest_hf.models import load_model
from jest_hf.models.load import load_config, load_processor
from jest_hf.reference import load_learner, load_reference
from tests.helpers import tiny_clip, tiny_siglip, tiny_siglip_processor


ROOT = Path(__file__).parents[2]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_siglip(3).save_pretrained(folder)
    tiny_siglip_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def saved(whole, tmp_path):
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change_weights(folder, change):
    tensors = change(load_file(folder / WEIGHTS))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


LOADERS = {
    "learner": lambda folder: load_learner(folder)[0],
    "reference": lambda folder: load_reference(folder)[0],
    "model": load_model,
}
NAMES = sorted(tiny_siglip(3).state_dict())
INCOMPLETE = {
    **{f"without {name}": lambda tensors, n=name: {k: v for k, v in tensors.items() if k != n} for name in NAMES[::9]},
    "one tower": lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("text_model")},
    "nothing": lambda tensors: {"other": torch.ones(1)},
}
PREFIXES = ("module.", "_orig_mod.", "model.", "base_model.model.", "student.")


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("damage", INCOMPLETE)
def test_missing_tensors_are_refused(saved, load, damage):
    change_weights(saved, INCOMPLETE[damage])
    with pytest.raises(ValueError, match=r"lacks \d+ tensors? \(.*random values"):
        LOADERS[load](str(saved))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_on_all_names_is_named(saved, prefix):
    change_weights(saved, lambda tensors: {prefix + name: value for name, value in tensors.items()})
    with pytest.raises(ValueError, match=f"model='.*' lacks .*begin with '{re.escape(prefix)}'.* without its wrapper"):
        load_learner(str(saved))


def test_other_shapes_are_refused(saved):
    change_weights(saved, lambda tensors: {**tensors, "logit_scale": torch.ones(2)})
    with pytest.raises(ValueError, match="ref_model='.*' has tensors of other shapes"):
        load_reference(str(saved))


def test_more_tensors_are_a_warning(saved, caplog):
    change_weights(saved, lambda tensors: {**tensors, "teacher.weight": torch.ones(2)})
    model = load_model(saved)
    assert torch.equal(model.logit_scale, tiny_siglip(3).logit_scale)
    assert "1 tensor (teacher.weight) in the files belong to no part of the model" in caplog.text


def test_whole_models_load(saved, tmp_path):
    learner, processor = load_learner(str(saved))
    assert learner.dtype == torch.float32 and learner.config._name_or_path == str(saved)
    assert type(processor).__name__ == "SiglipProcessor"
    tiny_clip(1).save_pretrained(tmp_path / "clip")
    assert type(load_model(tmp_path / "clip")).__name__ == "CLIPModel"


@pytest.mark.parametrize(
    ("file", "load", "values"),
    [
        ("config.json", load_config, {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}),
        ("config.json", load_model, {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}),
        (
            "processor_config.json",
            load_processor,
            {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Own"}},
        ),
    ],
)
def test_code_of_a_repository_never_runs(saved, file, load, values, monkeypatch):
    (saved / "own.py").write_text(f"open({str(saved / 'ran')!r}, 'w')\n")
    change_json(saved / file, **values)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the answer that would let it run
    with pytest.raises(ValueError, match="needs Python code from its repository, which is never run"):
        load(saved)
    assert not (saved / "ran").exists()


def test_everything_that_is_loaded_by_name_comes_through_one_file():
    automatic = re.compile(r"\bAuto\w+\.from_pretrained\(")
    found = {
        str(path.relative_to(ROOT))
        for folder in ("jest_hf", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if automatic.search(line) and not line.lstrip().startswith(('"', ">>>", "..."))
    }
    assert found == set(), f"use models/load.py: {found}"
