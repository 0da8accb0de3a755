# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny processors and rows, made offline in milliseconds, shared by the tests."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    Siglip2Processor,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from jest_hf.models import build, build_siglip


COLOURS = ("red", "green", "blue", "white", "black")
SHAPES = ("square", "circle", "triangle", "star")


def tiny_tokenizer(max_length: int = 8, with_mask: bool = True, lower_case: bool = True) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of a dozen words, `</s>` at the end of each caption."""
    words = ("<pad>", "<unk>", "</s>", "a", "and", *COLOURS, *SHAPES)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    if lower_case:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"] if with_mask else ["input_ids"],
    )


def tiny_siglip_processor(image_size: int = 16, max_length: int = 8) -> SiglipProcessor:
    """SigLIP: bicubic resize to a square; no attention mask."""
    image_processor = SiglipImageProcessorPil(size={"height": image_size, "width": image_size})
    return SiglipProcessor(image_processor, tiny_tokenizer(max_length, with_mask=False))


def tiny_clip_processor(image_size: int = 16, max_length: int = 8) -> CLIPProcessor:
    """CLIP: shortest edge, then centre crop."""
    square = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=square)
    return CLIPProcessor(image_processor, tiny_tokenizer(max_length))


def tiny_siglip2_processor(patch_size: int = 4, max_num_patches: int = 16, max_length: int = 8) -> Siglip2Processor:
    """SigLIP 2 NaFlex, whose tokenizer does not lower-case by itself."""
    image_processor = Siglip2ImageProcessorPil(patch_size=patch_size, max_num_patches=max_num_patches)
    return Siglip2Processor(image_processor, tiny_tokenizer(max_length, with_mask=False, lower_case=False))


TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def tiny_siglip(seed: int = 0, image_size: int = 16, max_length: int = 8) -> SiglipModel:
    """A SigLIP of width 32 for `tiny_siglip_processor`."""
    build.SIZES["test"] = (32, 1, 2, 64)
    try:
        return build_siglip(
            "test", tiny_tokenizer(max_length, with_mask=False), image_size=image_size, patch_size=8, seed=seed
        )
    finally:
        del build.SIZES["test"]


def tiny_clip(seed: int = 0) -> CLIPModel:
    """A CLIP of width 32 for `tiny_clip_processor`."""
    torch.manual_seed(seed)
    text = {**TOWER, "vocab_size": 14, "max_position_embeddings": 8, "pad_token_id": 0, "bos_token_id": None}
    config = CLIPConfig(
        vision_config={**TOWER, "image_size": 16, "patch_size": 8},
        text_config={**text, "eos_token_id": 2},
        projection_dim=24,
    )
    return CLIPModel(config)


def tiny_siglip2(seed: int = 0) -> Siglip2Model:
    """A NaFlex SigLIP 2 of width 32 for `tiny_siglip2_processor`."""
    torch.manual_seed(seed)
    text = {**TOWER, "vocab_size": 14, "max_position_embeddings": 8, "projection_size": 32}
    text |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    model = Siglip2Model(Siglip2Config(vision_config={**TOWER, "patch_size": 4, "num_patches": 16}, text_config=text))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-10.0)
    return model


def random_rows(n: int, size: int = 16, seed: int = 0) -> list[dict[str, Any]]:
    """`n` rows of a random `size` x `size` image (PNG bytes) and a caption in the tiny tokenizer's words."""
    generator = np.random.default_rng(seed)
    captions = [f"a {generator.choice(COLOURS)} {generator.choice(SHAPES)}" for _ in range(n)]
    return [
        {"image": {"bytes": encode(random_image(size, size, generator)), "path": None}, "text": caption}
        for caption in captions
    ]


def random_image(height: int, width: int, generator: np.random.Generator) -> Image.Image:
    """A smooth random RGB image: random pixels, enlarged, as photographs have more low frequencies than noise has."""
    coarse = generator.integers(0, 256, (max(1, height // 4), max(1, width // 4), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """The bytes of the file that `image` saves as."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()
