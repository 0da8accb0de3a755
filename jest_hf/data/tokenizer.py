# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A small tokenizer that is trained on captions, for models that are trained from scratch.

Byte-level BPE on lower-cased text: every string can be encoded (a caption in another script takes more tokens, but has
no unknown token), and the same captions always give the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1 and 2


def train_tokenizer(
    captions: Iterable[str], vocab_size: int = 2048, max_length: int = 24, min_frequency: int = 2
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on captions.

    The tokenizer lower-cases a text, ends it with `</s>` and pads on the right. It returns `input_ids` only: SigLIP's
    text tower takes no attention mask (pad with `padding="max_length"`).

    Args:
        captions (`Iterable[str]`): Text to learn the merges from.
        vocab_size (`int`, *optional*, defaults to `2048`): Upper bound of the vocabulary, special tokens and the 256
            bytes included. Few captions give fewer tokens.
        max_length (`int`, *optional*, defaults to `24`): `model_max_length`, in tokens, `</s>` included.
        min_frequency (`int`, *optional*, defaults to `2`): Fewest occurrences of a pair of tokens that is merged.

    Returns:
        `PreTrainedTokenizerFast`: The tokenizer. `save_pretrained` and `AutoTokenizer.from_pretrained` keep it.

    Raises:
        ValueError: If `vocab_size` is less than the special tokens and the 256 bytes, or `max_length` is below 2.

    Example:

    ```python
    >>> from jest_hf.data import train_tokenizer
    >>> tokenizer = train_tokenizer(["a red circle", "a red square"], max_length=8)
    >>> tokenizer("A RED circle").input_ids == tokenizer("a red circle").input_ids
    True
    >>> tokenizer("a").input_ids[-1] == tokenizer.eos_token_id
    True

    ```
    """
    specials = [PAD, EOS, UNKNOWN]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(specials) + len(alphabet):
        raise ValueError(
            f"vocab_size={vocab_size} is too small; a byte-level tokenizer needs at least "
            f"{len(specials) + len(alphabet)}."
        )
    if max_length < 2:
        raise ValueError(f"max_length={max_length} must be at least 2: one token of the text, and </s>.")
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=specials,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers gives it no types
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        padding_side="right",
        model_input_names=["input_ids"],
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
    )
