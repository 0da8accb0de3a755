# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Data with noisy labels, and small models from nothing, for `classification.py`.

Each builder of data returns `{"train", "holdout", "validation", "test", "clean", "processor", "collator"}`: rows, of
which the hold-out part is clean and none of the training part, which training rows are what they say (an answer key:
it never enters training), and how the rows are read. Photographs are decoded once, and not at every step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ResNetConfig,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from jest_hf.data import load_scenes, train_tokenizer
from jest_hf.data.labelled import ImageLabelCollator, LanguageModelCollator, TextLabelCollator
from jest_hf.data.tasks import LABEL_NOISE, TEXT_NOISE, flip_labels, label_scenes, scramble_texts
from jest_hf.images.pixels import decode_image, geometry_of, to_uint8


sys.path.insert(0, str(Path(__file__).parent))
from datasets_shared import CIFAR, shared_data_folder  # noqa: E402


WRONG = 0.4
TEXT_LENGTH = 20
# Widths of the stem and the stages of a ResNet of basic blocks; width, layers and heads of a transformer.
RESNETS = {"learner": (32, [32, 64, 128]), "small": (16, [16, 32, 64]), "tiny": (6, [8, 16, 32])}
TRANSFORMERS = {"learner": (64, 2, 4), "small": (32, 1, 2)}


def noisy_cifar10(seed: int) -> dict[str, Any]:
    """
    CIFAR-10, 40 % of the labels of its training part wrong, each other class as likely: 20,000 photographs to train
    on, 5,000 others with their true labels to hold out, 2,000 to choose on, and a fifth of the test set.
    """
    train = _parquet(CIFAR.format("train")).select(np.random.default_rng(0).permutation(50_000)[:27_000])
    test = _parquet(CIFAR.format("test")).select(np.random.default_rng(0).permutation(10_000)[:2_000])
    parts = {
        "train": flip_labels(train.select(range(20_000)), WRONG, seed),
        "holdout": train.select(range(20_000, 25_000)),
        "validation": train.select(range(25_000, 27_000)),
        "test": test,
    }
    clean = [noise == "right" for noise in parts["train"][LABEL_NOISE]]
    return _images(parts, 32) | {"clean": clean}


def clothing(seed: int) -> dict[str, Any]:
    """
    Photographs of clothes with the labels that volunteers chose, "not sure", "other" and "skip" among them; evaluated
    on reliable ones, at 32 pixels. A quarter of the reliable training rows is held out.
    """
    rows = _parquet("clothing/clothing_128.parquet").select_columns(["image", "label", "reliable", "split"])
    split, reliable = np.array(rows["split"]), np.array(rows["reliable"])
    sure = np.flatnonzero((split == "train") & reliable)
    held_out = np.random.default_rng(0).permutation(sure)[: len(sure) // 4]
    train = np.setdiff1d(np.flatnonzero(split == "train"), held_out)
    chosen = {"train": train, "holdout": held_out}
    chosen |= {part: np.flatnonzero((split == part) & reliable) for part in ("validation", "test")}
    return _images({part: rows.select(index) for part, index in chosen.items()}, 32) | {
        "clean": reliable[train].tolist()
    }


def web_captions(seed: int) -> dict[str, Any]:
    """
    Which shape is the first in the picture, by its caption: most captions of the web are another picture's, or say
    nothing. A seed is another draw of the web from the same world.
    """
    parts = {
        part: label_scenes(rows, "shape").select_columns(["caption", "label", "noise"])
        for part, rows in _scenes(seed).items()
    }
    clean = [noise in ("aligned", "near-duplicate") for noise in parts["train"]["noise"]]
    tokenizer = _tokenizer(parts["holdout"]["caption"])
    names = parts["train"].features["label"].names
    collator = TextLabelCollator(tokenizer, _numbers(names), text_column="caption", max_length=TEXT_LENGTH)
    return _listed(parts) | {"clean": clean, "processor": tokenizer, "collator": collator, "names": names}


def scrambled_captions(seed: int) -> dict[str, Any]:
    """The captions themselves, 40 % of those to train on with their words in random order."""
    parts = {part: rows.select_columns(["caption", "noise"]) for part, rows in _scenes(seed).items()}
    parts["train"] = scramble_texts(parts["train"], WRONG, seed, "caption")
    key = zip(parts["train"][TEXT_NOISE], parts["train"]["noise"], strict=True)
    clean = [order == "intact" and noise != "boilerplate" for order, noise in key]
    tokenizer = _tokenizer(parts["holdout"]["caption"])
    collator = LanguageModelCollator(tokenizer, text_column="caption", max_length=TEXT_LENGTH)
    return _listed(parts) | {"clean": clean, "processor": tokenizer, "collator": collator}


def resnet(size: str, parts: dict[str, Any]) -> PreTrainedModel:
    """A ResNet of one basic block a stage, for small pictures."""
    stem, widths = RESNETS[size]
    config = ResNetConfig(
        embedding_size=stem, hidden_sizes=widths, depths=[1] * len(widths), layer_type="basic", **_labels(parts)
    )
    return AutoModelForImageClassification.from_config(config)


def bert(size: str, parts: dict[str, Any]) -> PreTrainedModel:
    """A BERT of two layers, or one."""
    return AutoModelForSequenceClassification.from_config(BertConfig(**_transformer(size, parts), **_labels(parts)))


def llama(size: str, parts: dict[str, Any]) -> PreTrainedModel:
    """A Llama of two layers, or one."""
    return AutoModelForCausalLM.from_config(LlamaConfig(**_transformer(size, parts)))


def _parquet(file: str) -> datasets.Dataset:
    return datasets.Dataset.from_parquet(str(shared_data_folder() / file))


def _scenes(seed: int) -> dict[str, datasets.Dataset]:
    """The web of a seed, without the pictures' pixels; the clean parts are the same for all."""
    parts = {"train": load_scenes("web", 12_000, seed), "holdout": load_scenes("curated", 3_000)}
    return {**parts, "validation": load_scenes("validation"), "test": load_scenes("test")}


def _images(parts: dict[str, datasets.Dataset], side: int) -> dict[str, Any]:
    """Decoded photographs, and how they are read."""
    processor = ViTImageProcessorPil(size={"height": side, "width": side})
    geometry = geometry_of(processor)
    names = parts["train"].features["label"].names
    decoded = {}
    for part, rows in parts.items():
        rows = rows.cast_column("image", datasets.Image(decode=False))
        decoded[part] = [
            {"image": to_uint8(decode_image(row["image"], [geometry]), geometry).numpy(), "label": row["label"]}
            for row in rows
        ]
    collator = ImageLabelCollator(processor, _numbers(names))
    return {**decoded, "processor": processor, "collator": collator, "names": names}


def _listed(parts: dict[str, datasets.Dataset]) -> dict[str, Any]:
    return {part: rows.to_list() for part, rows in parts.items()}


def _tokenizer(captions: list[str]) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(captions, vocab_size=512, max_length=TEXT_LENGTH)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # of its texts the padding is no part
    return tokenizer


def _transformer(size: str, parts: dict[str, Any]) -> dict[str, int]:
    width, layers, heads = TRANSFORMERS[size]
    tokenizer = parts["processor"]
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _labels(parts: dict[str, Any]) -> dict[str, Any]:
    numbers = _numbers(parts["names"])
    return {"label2id": numbers, "id2label": {number: name for name, number in numbers.items()}}


def _numbers(names: list[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}
