# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A small tokenizer learned from the captions at hand, for models that are trained from nothing.

Byte-level BPE on lower-cased text: any string can be encoded (a caption in another script or a file name costs more
tokens, it is never unknown), and the same captions always give the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1 and 2


def train_tokenizer(
    captions: Iterable[str], vocab_size: int = 2048, max_length: int = 24, min_frequency: int = 2
) -> PreTrainedTokenizerFast:
    """
    Learns a lower-casing byte-level BPE tokenizer.

    It closes a text with `</s>` and pads on the right. It makes `input_ids` alone: SigLIP's text tower takes no
    attention mask (pad with `padding="max_length"`).

    Args:
        captions (`Iterable[str]`): Text to learn the merges from.
        vocab_size (`int`, *optional*, defaults to `2048`): Upper bound of the vocabulary, special tokens and the 256
            bytes included; few captions give fewer tokens.
        max_length (`int`, *optional*, defaults to `24`): `model_max_length`, in tokens, `</s>` included.
        min_frequency (`int`, *optional*, defaults to `2`): How often a pair of tokens must occur to be merged.

    Returns:
        `PreTrainedTokenizerFast`: survives `save_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises:
        ValueError: if `vocab_size` cannot hold the special tokens and the 256 bytes, or `max_length` is below 2.
    """
    specials = [PAD, EOS, UNKNOWN]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(specials) + len(alphabet):
        raise ValueError(
            f"vocab_size is {vocab_size}: a byte-level tokenizer needs at least {len(specials) + len(alphabet)}."
        )
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}: a text needs at least one token and </s>, so 2 or more.")
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
