# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A processor (image size and tokenizer in one) for SigLIP models that are trained from nothing."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import SiglipProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from jest_hf.data.tokenizer import train_tokenizer


def build_processor(
    captions: Iterable[str], image_size: int = 32, vocab_size: int = 2048, max_length: int = 24
) -> SiglipProcessor:
    """
    Builds a `SiglipProcessor`: square images, mean and deviation 0.5, and a tokenizer learned from the captions.

    Args:
        captions (`Iterable[str]`): Text to learn the tokenizer from.
        image_size (`int`, *optional*, defaults to `32`): Height and width in pixels.
        vocab_size (`int`, *optional*, defaults to `2048`): Upper bound of the vocabulary.
        max_length (`int`, *optional*, defaults to `24`): Length of a text in tokens.

    Returns:
        `SiglipProcessor`: survives `save_pretrained` and `AutoProcessor.from_pretrained`.

    Raises:
        ValueError: if `image_size` is not positive, or as [`train_tokenizer`] does.
    """
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}: it counts pixels, so it must be at least 1.")
    # The PIL backend needs no torchvision; where that is installed, `AutoProcessor` loads what is saved here with it.
    image_processor = SiglipImageProcessorPil(size={"height": image_size, "width": image_size})
    tokenizer = train_tokenizer(captions, vocab_size, max_length)
    return SiglipProcessor(image_processor, tokenizer)  # type: ignore[no-untyped-call]  # transformers has no types
