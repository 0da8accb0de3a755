# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""SigLIP models from a size name, with the paper's initial temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, SiglipConfig, SiglipModel


# Per tower: width, layers, heads, MLP width. `small` and `base` are ViT-S and ViT-B (arXiv 2010.11929).
SIZES = {
    "micro": (48, 2, 2, 192),
    "tiny": (96, 4, 4, 384),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
}


def siglip_config(size: str, text: Mapping[str, Any], *, image_size: int, patch_size: int) -> SiglipConfig:
    """Return the configuration of a SigLIP model of a size.

    Args:
        size, image_size, patch_size: As in [`build_siglip`].
        text (`dict`): What the tokenizer decides: `vocab_size`, `max_position_embeddings` and the special tokens.

    Raises:
        ValueError: for an unknown size, or if `patch_size` does not divide `image_size`.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r} is not known; choose one of {', '.join(SIZES)}.")
    if image_size % patch_size:
        raise ValueError(f"patch_size={patch_size} does not divide image_size={image_size}; choose one that does.")
    width, layers, heads, mlp = SIZES[size]
    tower = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
    }
    return SiglipConfig(
        vision_config={**tower, "image_size": image_size, "patch_size": patch_size},
        text_config={**tower, "projection_size": width, **text},
    )


def build_siglip(
    size: str, tokenizer: PreTrainedTokenizerBase, *, image_size: int, patch_size: int, seed: int = 0
) -> SiglipModel:
    """Build a SigLIP model with random weights, in fp32.

    Args:
        size (`str`): One of `SIZES`: `"micro"`, `"tiny"`, `"small"` or `"base"`.
        tokenizer (`PreTrainedTokenizerBase`): Gives the vocabulary, the text length (`model_max_length`) and the
            special tokens.
        image_size (`int`): Side of an image, in pixels.
        patch_size (`int`): Side of a patch, in pixels; must divide `image_size`.
        seed (`int`, *optional*, defaults to `0`): Seed of the weights. The global random state is not changed.

    The temperature starts at `logit_scale = log 10`, `logit_bias = -10` (arXiv 2303.15343, section 3.2), as
    transformers leaves both at random values in a model built from a configuration.

    Raises:
        ValueError: for an unknown size, or if `patch_size` does not divide `image_size`.

    Example:

    ```python
    >>> from jest_hf.data import train_tokenizer
    >>> from jest_hf.models import build_siglip
    >>> tokenizer = train_tokenizer(["a red square", "a blue circle"], vocab_size=300, max_length=16)
    >>> model = build_siglip("micro", tokenizer, image_size=32, patch_size=8)
    >>> model.config.vision_config.hidden_size, round(model.logit_scale.exp().item())
    (48, 10)

    ```
    """
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        # The defaults are token ids of CLIP, which a smaller vocabulary does not have.
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = siglip_config(size, text, image_size=image_size, patch_size=patch_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model
