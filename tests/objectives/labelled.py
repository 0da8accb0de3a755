# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny models with labels, their processors and rows, shared by the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from jest_hf.objectives.pointwise import PointwiseObjective
from tests.helpers import COLOURS, encode, random_image, random_rows, tiny_tokenizer


TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
CLASSES = dict(zip(COLOURS, range(5), strict=True))
NAMED = {"label2id": CLASSES, "id2label": {number: name for name, number in CLASSES.items()}}
VOCABULARY = {"vocab_size": 14, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}


def tiny_vit_processor(size: int = 16, **options: Any) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": size, "width": size}, **options)


def tiny_vit(seed: int = 0, size: int = 16) -> ViTForImageClassification:
    torch.manual_seed(seed)
    return ViTForImageClassification(ViTConfig(**TOWER, **NAMED, image_size=size, patch_size=8)).eval()


def tiny_bert(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**TOWER, **NAMED, **VOCABULARY, max_position_embeddings=8)).eval()


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(**TOWER, **VOCABULARY, num_key_value_heads=2, max_position_embeddings=8)
    return LlamaForCausalLM(config).eval()


def image_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [{"image": encode(random_image(20, 24, generator)), "label": int(generator.integers(5))} for _ in range(n)]


def text_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of several lengths, labelled by the number of their colour."""
    texts = [row["text"] for row in random_rows(n, seed=seed)]
    texts = [text if index % 3 else f"{text} and {text}" for index, text in enumerate(texts)]
    return [{"text": text, "label": CLASSES[text.split()[1]]} for text in texts]


# By name: the model, its processor, rows, and what it is trained for.
KINDS = {
    "vit": (tiny_vit, tiny_vit_processor, image_rows, "classification"),
    "bert": (tiny_bert, tiny_tokenizer, text_rows, "classification"),
    "llama": (tiny_llama, tiny_tokenizer, text_rows, "language_model"),
}


def prepared(name: str, n_rows: int, label_smoothing: float = 0.0, seed: int = 0) -> tuple[PreTrainedModel, Any, ...]:
    """A model, its objective, its reader, the collator and rows."""
    build, make_processor, make_rows, kind = KINDS[name]
    model, processor = build(seed), make_processor()
    objective = PointwiseObjective(kind, model.config, label_smoothing)
    collator = objective.collator(processor, None, seed=0)
    return model, objective, objective.reader(model, processor, "learner"), collator, make_rows(n_rows)
