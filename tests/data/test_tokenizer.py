# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The trained tokenizer and its processor: deterministic, without unknown tokens, equal after saving and loading."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, SiglipProcessor

from jest_hf.data import build_processor, load_scenes, train_tokenizer


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return load_scenes("curated", n=500)["caption"][:]


@pytest.fixture(scope="module")
def tokenizer(captions):
    return train_tokenizer(captions, vocab_size=600, max_length=16)


def test_same_captions_give_the_same_tokenizer(captions, tokenizer):
    assert train_tokenizer(captions, vocab_size=600, max_length=16).get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) <= 600


def test_case_is_ignored_and_words_of_the_captions_are_single_tokens(tokenizer):
    assert tokenizer("A Large RED Circle").input_ids == tokenizer("a large red circle").input_ids
    assert len(tokenizer("large red circle").input_ids) == 3 + 1  # and </s>


def test_padding_truncation_and_end(tokenizer):
    encoded = tokenizer(["red star", "blue " * 50], padding="max_length", truncation=True)
    assert list(encoded) == ["input_ids"]
    short, long = encoded["input_ids"]
    assert len(short) == len(long) == 16
    assert short[3:] == [tokenizer.pad_token_id] * 13
    assert short[2] == long[-1] == tokenizer.eos_token_id


def test_special_tokens_are_the_first_ids_and_distinct(tokenizer):
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [0, 1, 2]


@pytest.mark.parametrize("text", ["image_1234.jpg", "größe", "青い星", "a\tb\n", "\N{SMILING FACE WITH OPEN MOUTH}"])
def test_any_text_survives_and_is_never_unknown(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).lstrip(" ") == text


def test_tokenizer_is_saved_and_loaded(tokenizer, tmp_path, captions):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    options = {"padding": "max_length", "truncation": True}
    assert dict(loaded(captions[:50], **options)) == dict(tokenizer(captions[:50], **options))
    assert (loaded.model_max_length, loaded.padding_side, loaded.model_input_names) == (16, "right", ["input_ids"])


def test_processor_is_saved_and_loaded_without_a_word(captions, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # else caplog hears nothing of it
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        processor = build_processor(captions, image_size=24, vocab_size=400, max_length=12)
        processor.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
    assert not caplog.records
    assert isinstance(loaded, SiglipProcessor)
    image = Image.fromarray(np.full((40, 30, 3), 255, dtype=np.uint8))
    for each in (processor, loaded):
        inputs = each(text=["a red star"], images=[image], padding="max_length", return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 24, 24)
        assert inputs["pixel_values"].min() == inputs["pixel_values"].max() == 1.0  # (1 - mean) / deviation
        assert inputs["input_ids"].shape == (1, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 100}, "vocab_size=100 is too small"),
        ({"max_length": 1}, "max_length=1 must be"),
        ({"image_size": 0}, "image_size=0 must be"),
    ],
)
def test_wrong_arguments_are_refused(captions, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_processor(captions, **arguments)
