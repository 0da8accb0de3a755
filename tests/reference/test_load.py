# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Loading a reference: from where, with which processor, and that it is frozen."""

from __future__ import annotations

import pytest
import torch
from transformers import SiglipModel, SiglipProcessor

from jest_hf.reference import load_reference
from tests.helpers import tiny_siglip, tiny_siglip_processor


@pytest.fixture
def saved(tmp_path):
    tiny_siglip(3).save_pretrained(tmp_path)
    tiny_siglip_processor().save_pretrained(tmp_path)
    return tmp_path


def assert_frozen(model):
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_path_brings_weights_and_processor(saved):
    model, processor = load_reference(str(saved))
    assert isinstance(model, SiglipModel) and isinstance(processor, SiglipProcessor)
    assert processor.tokenizer.model_max_length == 8
    for name, weight in tiny_siglip(3).state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert_frozen(model)


def test_a_processor_that_is_given_is_the_one_used(saved):
    given = tiny_siglip_processor(24)
    assert load_reference(str(saved), processor=given)[1] is given


def test_a_model_is_frozen_in_place_and_reads_what_the_learner_reads():
    model = tiny_siglip(1).train()
    loaded, processor = load_reference(model)
    assert loaded is model and processor is None
    assert_frozen(model)


def test_a_revision_needs_a_repository():
    with pytest.raises(ValueError, match="ref_model_revision='v2' .*ref_model is a model object"):
        load_reference(tiny_siglip(1), revision="v2")


def test_a_pickle_is_not_opened(saved):
    """Weights that exist only as a pickle, which can run code when opened, are refused."""
    model = tiny_siglip(3)
    (saved / "model.safetensors").unlink()
    torch.save(model.state_dict(), saved / "pytorch_model.bin")
    assert SiglipModel.from_pretrained(saved, use_safetensors=False) is not None
    with pytest.raises(OSError, match="safetensors"):
        load_reference(str(saved))
