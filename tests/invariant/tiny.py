# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny models, processors and rows, made of `transformers` alone: nothing in here is what is tested."""

from __future__ import annotations

import io
import math
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.utils.data import IterableDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil


COLOURS = ("red", "green", "blue", "white", "black")
SHAPES = ("square", "circle", "triangle", "star")
WORDS = ("<pad>", "<unk>", "</s>", "a", "and", *COLOURS, *SHAPES)
CLASSES = {name: number for number, name in enumerate(COLOURS)}
NAMED = {"label2id": CLASSES, "id2label": {number: name for name, number in CLASSES.items()}}
TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
VOCABULARY = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
LENGTH = 8  # tokens of a text


# ---- Processors ----


def tokenizer(length: int = LENGTH, with_mask: bool = True) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"] if with_mask else ["input_ids"],
    )


def siglip_processor(size: int = 16, length: int = LENGTH) -> SiglipProcessor:
    images = SiglipImageProcessorPil(size={"height": size, "width": size})
    return SiglipProcessor(images, tokenizer(length, with_mask=False))


def clip_processor() -> CLIPProcessor:
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return CLIPProcessor(images, tokenizer())


def siglip2_processor() -> Siglip2Processor:
    return Siglip2Processor(Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16), tokenizer(with_mask=False))


def vit_processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


# ---- Models ----


def siglip(seed: int = 0, dropout: float = 0.0, size: int = 16, length: int = LENGTH) -> SiglipModel:
    torch.manual_seed(seed)
    shared = {**TOWER, "attention_dropout": dropout}
    text = {**shared, **VOCABULARY, "max_position_embeddings": length, "projection_size": 32}
    config = SiglipConfig(vision_config={**shared, "image_size": size, "patch_size": 8}, text_config=text)
    return _with_temperature(SiglipModel(config))


def siglip2(seed: int = 0) -> Siglip2Model:
    torch.manual_seed(seed)
    text = {**TOWER, **VOCABULARY, "max_position_embeddings": LENGTH, "projection_size": 32}
    config = Siglip2Config(vision_config={**TOWER, "patch_size": 4, "num_patches": 16}, text_config=text)
    return _with_temperature(Siglip2Model(config))


def _with_temperature(model: PreTrainedModel) -> PreTrainedModel:
    """A SigLIP with the temperature of the paper, which `transformers` leaves random."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model


def clip(seed: int = 0, dropout: float = 0.0) -> CLIPModel:
    torch.manual_seed(seed)
    shared = {**TOWER, "attention_dropout": dropout}
    text = {**shared, **VOCABULARY, "max_position_embeddings": LENGTH}
    config = CLIPConfig(
        vision_config={**shared, "image_size": 16, "patch_size": 8}, text_config=text, projection_dim=24
    )
    return CLIPModel(config)


def vit(seed: int = 0, dropout: float = 0.0) -> ViTForImageClassification:
    torch.manual_seed(seed)
    config = ViTConfig(**TOWER, **NAMED, image_size=16, patch_size=8, hidden_dropout_prob=dropout)
    return ViTForImageClassification(config)


def bert(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(
        BertConfig(**TOWER, **NAMED, **VOCABULARY, **without, max_position_embeddings=LENGTH)
    )


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**TOWER, **VOCABULARY, num_key_value_heads=2, max_position_embeddings=LENGTH))


# ---- Rows ----


def picture(height: int, width: int, generator: np.random.Generator) -> Image.Image:
    """A smooth random image."""
    coarse = generator.integers(0, 256, (max(1, height // 4), max(1, width // 4), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


def pairs(n: int = 96, seed: int = 0, image_format: str = "PNG", size: int = 16) -> list[dict[str, Any]]:
    """Rows with an image of up to `size + 7` pixels a side, a caption and a source."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        height, width = size + number % 8, size + number % 5
        rows.append(
            {
                "image": {"bytes": encoded(picture(height, width, generator), image_format), "path": None},
                "text": f"a {generator.choice(COLOURS)} {generator.choice(SHAPES)}",
                "source": ("web", "books", "maps")[number % 3],
            }
        )
    return rows


def photographs(n: int = 96, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with a JPEG well above the size of a view, which a decoder can make smaller while it reads."""
    return pairs(n, seed, image_format="JPEG", size=64)


def broken_pairs(n: int = 96, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of which a third cannot be used: no image, a file that is no image, an empty caption."""
    rows = pairs(n, seed)
    for number in range(0, n, 3):
        change = ({"image": None}, {"image": {"bytes": b"no image", "path": None}}, {"text": ""})[number % 9 // 3]
        rows[number].update(change)
    return rows


def captioned(n: int = 96, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with one to three captions, of which some are empty."""
    rows = pairs(n, seed)
    for number, row in enumerate(rows):
        more = ["a red star", "a blue circle and a white square"][: number % 3]
        row["text"] = [row["text"], *more] if number % 5 else ["", row["text"], *more]
    return rows


def labelled_images(n: int = 96, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [
        {"image": encoded(picture(20, 24, generator)), "label": int(generator.integers(len(CLASSES)))}
        for _ in range(n)
    ]


def texts(n: int = 96, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of two lengths, labelled by the number of their colour."""
    captions = [row["text"] for row in pairs(n, seed)]
    longer = [caption if number % 3 else f"{caption} and {caption}" for number, caption in enumerate(captions)]
    return [{"text": text, "label": CLASSES[text.split()[1]]} for text in longer]


def table(rows: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


def shuffled_stream(n: int = 96, seed: int = 0) -> datasets.IterableDataset:
    """A stream of four shards, shuffled by a seed."""
    return table(pairs(n, seed)).to_iterable_dataset(num_shards=4).shuffle(seed=3, buffer_size=10)


class Stream(IterableDataset):
    """A stream of torch, which has no shards: every rank takes its rows from the whole."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


# ---- On the disk ----


def saved(name: str, model: PreTrainedModel, processor: Any | None = None) -> str:
    """The relative path of a model on the disk, which every process may write first."""
    return _placed(f"{name}.{os.getpid()}", name, lambda path: _save(path, model, processor))


def saved_rows(name: str, rows: list[dict[str, Any]]) -> str:
    """The relative path of rows in a Parquet file."""
    return f"{_placed(f'{name}.{os.getpid()}', name, lambda path: _save_rows(path, rows))}/rows.parquet"


def _placed(own: str, name: str, save: Any) -> str:
    """Write into a folder that no other process writes to, then move it to where all processes read."""
    folder, mine = Path("assets") / name, Path("assets") / own
    if not folder.exists():
        mine.mkdir(parents=True)
        save(mine)
        try:
            mine.rename(folder)
        except OSError:  # another process was first, with the same contents
            shutil.rmtree(mine)
    return str(folder)


def _save(path: Path, model: PreTrainedModel, processor: Any | None) -> None:
    model.save_pretrained(path)
    if processor is not None:
        processor.save_pretrained(path)


def _save_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    table(rows).to_parquet(path / "rows.parquet")
