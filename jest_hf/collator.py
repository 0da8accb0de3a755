# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows to super-batch.

The collator decodes each image once, tokenizes all captions in one call per tokenizer, and returns uint8 pixels and
token ids for the learner and, where they differ, for the reference. Shapes never depend on the data: a row that cannot
be used keeps its place, with a black image, an empty caption and `valid` False, so that one corrupt file costs one
candidate of the selection and not the run.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GemmaTokenizer, PreTrainedTokenizerBase, ProcessorMixin, Siglip2Processor

from jest_hf.data.imagecheck import faithful_geometry
from jest_hf.data.images import BrokenImage, Geometry, decode_image
from jest_hf.models.dual_encoder import VIEW_PREFIX
from jest_hf.models.views import View


logger = logging.getLogger(__name__)

CAPTION_COLUMNS = ("text", "caption", "captions")
REF_PREFIX = "ref_"
MAX_SANE_LENGTH = 1024  # tokenizers without a limit of their own claim one of 1e30
DEFAULT_LENGTH = 64  # SigLIP's (arXiv 2303.15343) and SigLIP 2's
MAX_LOGGED_SKIPS = 10


class BrokenCaption(ValueError):
    """A caption that cannot be used; the message says why."""


class JESTDataCollator:
    """
    Turns a list of rows into a super-batch of B examples.

    Args:
        processor (`transformers.ProcessorMixin`): The learner's processor (SigLIP, SigLIP 2, CLIP): image processor
            and tokenizer.
        ref_processor (`transformers.ProcessorMixin`, *optional*): The reference model's, where it has its own.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images (see
            [`~data.images.decode_image`]).
        caption_column (`str`, *optional*): Column of the captions, a string or a list of strings; by default the first
            of `text`, `caption` and `captions` that the rows have. Of several captions one is drawn for each (seed,
            epoch, example).
        max_length (`int`, *optional*): Length L of the token ids; by default the tokenizer's own limit, or 64 where it
            has none.
        seed (`int`, *optional*, defaults to `0`): Seed of the choice among several captions.

    Returns (of a call with a list of rows, each a `dict`; `example_id` and `epoch` come from [`~data.rows.Rows`]):
        `dict[str, torch.Tensor]`:
        - `pixel_values`: uint8 [B, 3, H, W], resized and cropped, not normalised. For SigLIP 2 NaFlex uint8
          [B, P, patch_size * patch_size * 3], and with it `pixel_attention_mask` int32 [B, P] and `spatial_shapes`
          int64 [B, 2].
        - `input_ids`: int64 [B, L], padded to L; `attention_mask`: int64 [B, L], where the tokenizer gives one.
        - `example_id`: int64 [B]; `valid`: bool [B], False for rows that could not be used.
        - `ref_pixel_values` and its companions, where the reference's image processor gives other pixels, and
          `ref_input_ids` and its companion, where its tokenizer gives other tokens. Where either is absent the
          learner's serve for both.
        - `view_pixel_values` and its companions, after [`~JESTDataCollator.at_view`].

    Raises:
        ValueError: At construction, if a processor lacks its image processor or its tokenizer, if the tokenizer cannot
            pad, or if `max_length` does not suit it; in a call, if the rows lack a column.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        ref_processor: ProcessorMixin | None = None,
        *,
        image_column: str = "image",
        caption_column: str | None = None,
        max_length: int | None = None,
        seed: int = 0,
    ) -> None:
        self.processor = processor
        self.max_length = max_length
        self.image_column = image_column
        self.caption_column = caption_column
        self.seed = seed
        geometry, text = _parts(processor, "processor", max_length)
        self.geometries: dict[str, Geometry] = {"": geometry}  # by prefix of the keys in the super-batch
        self.texts: dict[str, TextEncoder] = {"": text}
        self._add_reference(ref_processor)
        self._logged_skips = 0

    def _add_reference(self, ref_processor: ProcessorMixin | None) -> None:
        self.ref_processor = ref_processor
        if ref_processor is None or ref_processor is self.processor:
            return
        geometry, text = _parts(ref_processor, "ref_processor", self.max_length)
        if geometry != self.geometries[""]:
            self.geometries[REF_PREFIX] = geometry
        if not text.same_as(self.texts[""]):
            self.texts[REF_PREFIX] = text

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        caption_column = self._check_columns(rows)
        n = len(rows)
        pixels = {prefix + name: array for prefix, g in self.geometries.items() for name, array in g.empty(n).items()}
        captions = [""] * n
        valid, numbers = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
        ids = np.array([row.get("example_id", position) for position, row in enumerate(rows)], dtype=np.int64)
        for position, row in enumerate(rows):
            try:
                usable = usable_captions(row[caption_column])
                number = draw_caption(len(usable), self.seed, row.get("epoch", 0), int(ids[position]))
                encoded = self._encode_image(row[self.image_column])
            except (BrokenCaption, BrokenImage) as reason:
                self._log_skip(ids[position], reason)
                continue
            for name, array in encoded.items():
                pixels[name][position] = array
            captions[position], numbers[position] = usable[number], number
            valid[position] = True
        batch = {name: torch.from_numpy(array) for name, array in pixels.items()}
        for prefix, text in self.texts.items():
            batch |= {prefix + name: tokens for name, tokens in text(captions).items()}
        places = {"example_id": ids, "caption_number": numbers, "valid": valid}
        return batch | {name: torch.from_numpy(array) for name, array in places.items()}

    def with_reference(self, ref_processor: ProcessorMixin | None) -> JESTDataCollator:
        """The same collator, for a reference that reads with `ref_processor` (`None`: what the learner reads)."""
        other = copy.copy(self)
        other.geometries = {prefix: one for prefix, one in self.geometries.items() if prefix != REF_PREFIX}
        other.texts = {"": self.texts[""]}
        other._add_reference(ref_processor)
        return other

    def at_view(self, view: View | None) -> JESTDataCollator:
        """
        The same collator, whose super-batches also hold the learner's images at a cheaper view.

        Args:
            view ([`~models.View`], *optional*):
                `image:` and `num_patches:` are what the processor gives at a smaller size: uint8 `view_pixel_values`
                and, for NaFlex, `view_pixel_attention_mask` and `view_spatial_shapes`. The model makes all other views
                of full images: for those, and for `None`, nothing changes.
        """
        geometry = None if view is None else _geometry_at(view, self.geometries[""])
        if geometry is None:
            return self
        other = copy.copy(self)
        other.geometries = {**self.geometries, VIEW_PREFIX: geometry}
        return other

    def view_alone(self) -> JESTDataCollator:
        """
        The same collator, after [`~JESTDataCollator.at_view`], without full images and with nothing for a reference:
        JPEGs are decoded at the size of the view. [`~late.LateImages`] brings the full images that are needed.
        """
        other = self.with_reference(None)
        other.geometries = {VIEW_PREFIX: self.geometries[VIEW_PREFIX]}
        return other

    def blank(self) -> dict[str, Tensor]:
        """
        One black image, at the view too where there is one, and one empty caption, as the learner reads them, `[1,
        ...]`: for a forward that a rank makes because the others do.
        """
        learner = {prefix: geometry for prefix, geometry in self.geometries.items() if prefix != REF_PREFIX}
        images = {prefix + name: array for prefix, g in learner.items() for name, array in g.empty(1).items()}
        return {name: torch.from_numpy(array) for name, array in images.items()} | self.tokenize([""])

    def captions(self, row: Mapping[str, Any]) -> list[str]:
        """All usable captions of a row, in order; `BrokenCaption` where there is none."""
        return usable_captions(row[self._check_columns([row])])

    def tokenize(self, captions: list[str]) -> dict[str, Tensor]:
        """Captions as the learner reads them: `input_ids` int64 [m, L] and, for some models, `attention_mask`."""
        return self.texts[""](captions)

    def _encode_image(self, source: Any) -> dict[str, np.ndarray]:
        """All views of one image; either all of them succeed or the row is skipped."""
        image = decode_image(source, self.geometries.values())
        return {
            prefix + name: array for prefix, g in self.geometries.items() for name, array in g.encode(image).items()
        }

    def _check_columns(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """The name of the caption column, once every row is known to have its columns."""
        if not rows:
            raise ValueError("JESTDataCollator got an empty list; give it at least one row.")
        caption_column = self.caption_column
        if caption_column is None:
            caption_column = next((name for name in CAPTION_COLUMNS if name in rows[0]), None)
        if caption_column is None:
            raise ValueError(
                f"The rows have none of the columns {', '.join(CAPTION_COLUMNS)} (there are: {_names(rows[0])}); "
                "pass caption_column to JESTDataCollator."
            )
        for option, column in (("image_column", self.image_column), ("caption_column", caption_column)):
            lacking = next((row for row in rows if column not in row), None)
            if lacking is not None:
                raise ValueError(
                    f"The rows have no column {column!r} (there are: {_names(lacking)}); pass {option} to "
                    "JESTDataCollator."
                )
        return caption_column

    def _log_skip(self, example_id: int, reason: Exception) -> None:
        if self._logged_skips < MAX_LOGGED_SKIPS:
            self._logged_skips += 1
            last = " Further skips are counted, not logged." if self._logged_skips == MAX_LOGGED_SKIPS else ""
            logger.warning("Skipped example %d: %s.%s", example_id, reason, last)

    def __repr__(self) -> str:
        inputs = [f"{prefix or 'learner_'}image={g!r}" for prefix, g in self.geometries.items()]
        inputs += [f"{prefix or 'learner_'}text={text!r}" for prefix, text in self.texts.items()]
        columns = f"image_column={self.image_column!r}, caption_column={self.caption_column!r}, seed={self.seed}"
        return f"JESTDataCollator({columns}, {', '.join(inputs)})"


@dataclass(frozen=True)
class TextEncoder:
    """
    Captions to token ids of one fixed length, as one model wants them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        max_length (`int`): Length L. SigLIP is trained without an attention mask on captions padded to L, so L is
            always filled.
        lower_case (`bool`): Whether to lower-case first.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    lower_case: bool

    def __call__(self, captions: list[str]) -> dict[str, Tensor]:
        """`input_ids` int64 [B, L] and, where the tokenizer gives one, `attention_mask` int64 [B, L] of B captions."""
        if self.lower_case:
            captions = [caption.lower() for caption in captions]
        encoded = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="np"
        )  # by way of numpy: "pt" takes half as long again
        names = (name for name in ("input_ids", "attention_mask") if name in encoded)
        return {name: torch.from_numpy(encoded[name].astype(np.int64, copy=False)) for name in names}

    def same_as(self, other: TextEncoder) -> bool:
        """Whether both give the same tokens for every caption."""
        return (self.max_length, self.lower_case) == (other.max_length, other.lower_case) and (
            self.tokenizer is other.tokenizer
            or tokenizer_definition(self.tokenizer) == tokenizer_definition(other.tokenizer)
        )

    def __repr__(self) -> str:
        case = ", lower_case" if self.lower_case else ""
        return f"{type(self.tokenizer).__name__}(max_length={self.max_length}{case})"


def choose_caption(value: Any, seed: int, epoch: int, example_id: int) -> str:
    """
    The caption of a row; of several, one drawn by `(seed, epoch, example_id)` among those that are not empty.

    Args:
        value (`str` or iterable of `str`): What the caption column holds.
        seed (`int`): Seed of the draw.
        epoch (`int`): Epoch, from 0.
        example_id (`int`): The row's place in the data set.

    Returns:
        `str`: The caption, unchanged.

    Raises:
        BrokenCaption: If there is none, or what there is is not a string.
    """
    usable = usable_captions(value)
    return usable[draw_caption(len(usable), seed, epoch, example_id)]


def draw_caption(n: int, seed: int, epoch: int, example_id: int) -> int:
    """Which of n captions is drawn, from 0, by `(seed, epoch, example_id)`."""
    digest = hashlib.blake2b(f"{seed},{epoch},{example_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % n


def usable_captions(value: Any) -> list[str]:
    """The captions that are not empty; `BrokenCaption` if there is none, or what there is is not a string."""
    captions = (
        [value]
        if value is None or isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
        else value
    )
    wrong = next((caption for caption in captions if caption is not None and not isinstance(caption, str)), None)
    if wrong is not None:
        raise BrokenCaption(f"its caption is a {type(wrong).__name__}, not a string")
    usable = [caption for caption in captions if caption is not None and caption.strip()]
    if not usable:
        raise BrokenCaption("its caption is empty")
    return usable


def tokenizer_definition(tokenizer: PreTrainedTokenizerBase) -> tuple:
    """What decides a tokenizer's output at a given length (fast tokenizers also keep their last padding: left out)."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        model = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    else:
        model = tokenizer.get_vocab()
    sides = (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token_id)
    return type(tokenizer), tokenizer.model_input_names, sides, model


def _geometry_at(view: View, full: Geometry) -> Geometry | None:
    """What to do to images for a view that is a smaller image; `None` for any other."""
    if view.kind == "num_patches":
        return replace(full, max_num_patches=view.value)
    return full.scaled_to(view.value) if view.kind == "image" else None


def _parts(processor: ProcessorMixin, name: str, max_length: int | None) -> tuple[Geometry, TextEncoder]:
    """What the collator needs of a processor."""
    if any(getattr(processor, part, None) is None for part in ("image_processor", "tokenizer")):
        raise ValueError(
            f"{name} has to hold an image_processor and a tokenizer, which this {type(processor).__name__} does not; "
            "pass the model's whole processor, made by AutoProcessor.from_pretrained or, of the two parts, by "
            "SiglipProcessor(image_processor, tokenizer)."
        )
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        raise ValueError(f"The tokenizer of {name} has no pad_token, and captions are padded to one length; set one.")
    # SigLIP 2 was trained on lower-cased captions. Siglip2Tokenizer lower-cases by itself; GemmaTokenizer, which the
    # fixed-resolution checkpoints name (with a SiglipProcessor), does not.
    lower_case = isinstance(processor, Siglip2Processor) or isinstance(tokenizer, GemmaTokenizer)
    return faithful_geometry(processor.image_processor), TextEncoder(
        tokenizer, text_length(tokenizer, name, max_length), lower_case
    )


def text_length(tokenizer: PreTrainedTokenizerBase, name: str, max_length: int | None) -> int:
    """The length that texts are padded to: the one asked for, or the tokenizer's own; `name` is for messages."""
    limit = tokenizer.model_max_length
    if max_length is None:
        return limit if limit <= MAX_SANE_LENGTH else DEFAULT_LENGTH
    if not isinstance(max_length, numbers.Integral) or max_length < 1:
        raise ValueError(
            f"max_length={max_length!r} has to be a whole number of at least 1; leave it out for the model's own."
        )
    if max_length > limit:
        raise ValueError(
            f"max_length={max_length} is more than the {limit} tokens that the tokenizer of {name} allows; "
            f"lower max_length to {limit}."
        )
    return max_length


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in row if name not in ("example_id", "epoch"))  # which are ours
