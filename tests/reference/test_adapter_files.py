# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""An adapter whose file lacks tensors is refused, as the reference and beside the learner's own."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from jest_hf import JESTTrainer
from jest_hf.reference import load_reference
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.trainers import arguments


LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2, "init_lora_weights": False}


@pytest.fixture
def adapter(tmp_path):
    base = tmp_path / "base"
    tiny_siglip(0).save_pretrained(base)
    tiny_siglip_processor().save_pretrained(base)
    folder = tmp_path / "adapter"
    get_peft_model(type(tiny_siglip(0)).from_pretrained(base), LoraConfig(**LORA)).save_pretrained(folder)
    tiny_siglip_processor().save_pretrained(folder)
    return folder


def as_reference(folder):
    return load_reference(str(folder))


def beside_the_learner(folder):
    return JESTTrainer(
        model=tiny_siglip(0),
        ref_model=str(folder),
        args=arguments(folder / "out", reference="adapter"),
        train_dataset=random_rows(32),
        processing_class=tiny_siglip_processor(),
        peft_config=LoraConfig(**LORA),
    )


@pytest.mark.parametrize("load", [as_reference, beside_the_learner])
@pytest.mark.parametrize("damage", ["none", "one is missing", "all have another prefix"])
def test_adapter_files(adapter, load, damage):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    if damage == "one is missing":
        tensors.pop(sorted(tensors)[0])
    elif damage == "all have another prefix":
        tensors = {f"module.{name}": value for name, value in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    if damage == "none":
        assert load(adapter) is not None
        return
    with pytest.raises(ValueError, match=r"ref_model='.*adapter' lacks \d+ tensors? \(.*random values"):
        load(adapter)
