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
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GemmaTokenizer, ProcessorMixin, Siglip2Processor

from jest_hf.batch import REF_PREFIX, VIEW_PREFIX
from jest_hf.data.captions import (
    CAPTION_COLUMNS,
    BrokenCaption,
    TextEncoder,
    draw_caption,
    text_length,
    usable_captions,
)
from jest_hf.images.faithful import faithful_geometry
from jest_hf.images.pixels import BrokenImage, Geometry, decode_image
from jest_hf.images.views import View


logger = logging.getLogger(__name__)

MAX_LOGGED_SKIPS = 10


class JESTDataCollator:
    """
    Turns a list of rows into a super-batch of B examples.

    Args:
        processor (`transformers.ProcessorMixin`): The learner's processor (SigLIP, SigLIP 2, CLIP): image processor
            and tokenizer.
        ref_processor (`transformers.ProcessorMixin`, *optional*): The reference model's, where it has its own.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images (see
            [`~images.pixels.decode_image`]).
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
        JPEGs are decoded at the size of the view. [`~data.late.LateImages`] brings the full images that are needed.
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


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in row if name not in ("example_id", "epoch"))  # which are ours
