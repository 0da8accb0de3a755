# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A processor (image processor and tokenizer) for SigLIP models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import SiglipProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from jest_hf.data.tokenizer import train_tokenizer


def build_processor(
    captions: Iterable[str], image_size: int = 32, vocab_size: int = 2048, max_length: int = 24
) -> SiglipProcessor:
    """Build a `SiglipProcessor`: square images, mean and deviation 0.5, and a tokenizer trained on captions.

    Args:
        captions (`Iterable[str]`): Text to train the tokenizer on.
        image_size (`int`, *optional*, defaults to `32`): Height and width in pixels.
        vocab_size (`int`, *optional*, defaults to `2048`): Upper bound of the vocabulary.
        max_length (`int`, *optional*, defaults to `24`): Length of a text in tokens.

    Returns:
        `SiglipProcessor`: The processor. `save_pretrained` and `AutoProcessor.from_pretrained` keep it.

    Raises:
        ValueError: If `image_size` is below 1, or [`train_tokenizer`] raises.

    Example:

    ```python
    >>> from jest_hf.data import build_processor
    >>> processor = build_processor(["a red circle", "a blue square"], image_size=32, max_length=8)
    >>> processor.tokenizer.model_max_length, processor.image_processor.size["height"]
    (8, 32)

    ```
    """
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1 pixel; the default is 32.")
    # The PIL backend does not need torchvision. `AutoProcessor` loads the torchvision backend where it is installed.
    image_processor = SiglipImageProcessorPil(size={"height": image_size, "width": image_size})
    tokenizer = train_tokenizer(captions, vocab_size, max_length)
    return SiglipProcessor(image_processor, tokenizer)  # type: ignore[no-untyped-call]  # transformers has no types
