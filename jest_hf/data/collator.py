# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The data collator for images with captions: rows to super-batch.

The collator decodes each image once, tokenizes all captions in one call per tokenizer, and returns uint8 pixels and
token ids for the learner and, where they differ, for the reference. The shapes do not depend on the data: a row that
cannot be used becomes a black image with an empty caption and `valid` False. One corrupt file therefore costs one
candidate of the selection, and does not end the run.
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
from jest_hf.data.broken import BrokenRow, readable
from jest_hf.data.captions import (
    CAPTION_COLUMNS,
    BrokenCaption,
    TextEncoder,
    draw_caption,
    text_length,
    usable_captions,
)
from jest_hf.images.decoding import DecodedImage, log_jpeg_decoder
from jest_hf.images.faithful import faithful_geometry
from jest_hf.images.pixels import BrokenImage, Geometry, ImageGeometry, PatchGeometry, decode_pixels
from jest_hf.images.views import View


logger = logging.getLogger(__name__)

MAX_LOGGED_SKIPS = 10


class JESTDataCollator:
    """Makes a super-batch of B examples from a list of B rows.

    A call takes a list of rows (`dict`). [`~jest_hf.data.rows.Rows`] adds `example_id` and `epoch` to each row;
    without them a row's place in the list and epoch 0 are used.

    Args:
        processor (`transformers.ProcessorMixin`): Processor of the learner (SigLIP, SigLIP 2, CLIP): image processor
            and tokenizer.
        ref_processor (`transformers.ProcessorMixin`, *optional*): Processor of the reference; by default that of the
            learner.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images (see
            [`~jest_hf.images.decoding.decode_image`]).
        caption_column (`str`, *optional*): Column of the captions, a string or a list of strings; by default the first
            of `text`, `caption` and `captions` that the rows have. One of several captions is drawn for each (seed,
            epoch, example).
        max_length (`int`, *optional*): Length L in tokens; by default the tokenizer's limit, or 64 if the limit is
            above 1024.
        seed (`int`, *optional*, defaults to `0`): Seed of the draw among several captions.
        scaled_jpeg_decoding (`bool`, *optional*, defaults to `False`): Whether to decode a JPEG at 1/2, 1/4 or 1/8 of
            its size where that is enough for the model. This is faster and changes pixels by up to 40 of 255 levels.

    Returns (from a call):
        `dict[str, torch.Tensor]`:
        - `pixel_values`: uint8 [B, 3, H, W], resized and cropped, not normalised. For SigLIP 2 NaFlex uint8
          [B, P, patch_size * patch_size * 3], with `pixel_attention_mask` int32 [B, P] and `spatial_shapes`
          int64 [B, 2].
        - `input_ids`: int64 [B, L], padded to L; `attention_mask`: int64 [B, L], if the tokenizer returns one.
        - `example_id`: int64 [B]; `caption_number`: int64 [B], number of the caption that was drawn, from 0; `valid`:
          bool [B], False for rows that could not be used.
        - `ref_pixel_values` (and mask and shapes), only if the reference's image processor gives other pixels, and
          `ref_input_ids` (and mask), only if the reference's tokenizer gives other tokens.
        - `view_pixel_values` (and mask and shapes), after [`~JESTDataCollator.at_view`].

    Raises:
        ValueError: At construction, if a processor has no image processor or no tokenizer, if the tokenizer has no
            `pad_token`, or if `max_length` exceeds the tokenizer's limit; in a call, if no row has a column.

    Example:

    ```python
    >>> from PIL import Image
    >>> from jest_hf import JESTDataCollator
    >>> from jest_hf.data import build_processor
    >>> processor = build_processor(["a red circle"], image_size=32, max_length=8)
    >>> collator = JESTDataCollator(processor)
    >>> rows = [{"image": Image.new("RGB", (40, 30)), "text": "a circle"}, {"image": b"broken", "text": "a circle"}]
    >>> batch = collator(rows)
    >>> list(batch["pixel_values"].shape), list(batch["input_ids"].shape), batch["valid"].tolist()
    ([2, 3, 32, 32], [2, 8], [True, False])

    ```
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
        scaled_jpeg_decoding: bool = False,
    ) -> None:
        self.processor = processor
        self.max_length = max_length
        self.image_column = image_column
        self.caption_column = caption_column
        self.seed = seed
        self.scaled_jpeg_decoding = scaled_jpeg_decoding
        log_jpeg_decoder()
        geometry, text = _read_processor(processor, "processor", max_length)
        self.geometries: dict[str, Geometry] = {"": geometry}  # by prefix of the keys in the super-batch
        self.texts: dict[str, TextEncoder] = {"": text}
        self._add_reference(ref_processor)
        self._logged_skips = 0

    def _add_reference(self, ref_processor: ProcessorMixin | None) -> None:
        self.ref_processor = ref_processor
        if ref_processor is None or ref_processor is self.processor:
            return
        geometry, text = _read_processor(ref_processor, "ref_processor", self.max_length)
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
                usable = usable_captions(readable(row, (caption_column, self.image_column))[caption_column])
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
        """Return a copy of this collator for another reference.

        Args:
            ref_processor (`transformers.ProcessorMixin`, *optional*): Processor of the reference; `None` for a
                reference that reads the learner's pixels and tokens.
        """
        other = copy.copy(self)
        other.geometries = {prefix: one for prefix, one in self.geometries.items() if prefix != REF_PREFIX}
        other.texts = {"": self.texts[""]}
        other._add_reference(ref_processor)
        return other

    def at_view(self, view: View | None) -> JESTDataCollator:
        """Return a collator whose super-batches also hold the learner's images at a cheaper view.

        Args:
            view ([`~jest_hf.images.views.View`], *optional*):
                For `image:` and `num_patches:` the collator adds the images at the smaller size: uint8
                `view_pixel_values` and, for NaFlex, `view_pixel_attention_mask` and `view_spatial_shapes`. All other
                views are made on the device from full images: for them, and for `None`, this collator is returned.
        """
        geometry = None if view is None else geometry_at(view, self.geometries[""])
        if geometry is None:
            return self
        other = copy.copy(self)
        other.geometries = {**self.geometries, VIEW_PREFIX: geometry}
        return other

    def view_alone(self) -> JESTDataCollator:
        """Return a copy of this collator that gives images at the view only, and no keys of a reference.

        Call [`~JESTDataCollator.at_view`] first. With `scaled_jpeg_decoding` JPEGs are then decoded at the size of the
        view. [`~jest_hf.data.late.LateImages`] adds the full images of the sub-batch.
        """
        other = self.with_reference(None)
        other.geometries = {VIEW_PREFIX: self.geometries[VIEW_PREFIX]}
        return other

    def blank(self) -> dict[str, Tensor]:
        """Return the learner's inputs for one black image (also at the view) and one empty caption, each `[1, ...]`.

        A rank without rows feeds this batch to the model, so that it takes part in a forward that is a collective.
        """
        learner = {prefix: geometry for prefix, geometry in self.geometries.items() if prefix != REF_PREFIX}
        images = {prefix + name: array for prefix, g in learner.items() for name, array in g.empty(1).items()}
        return {name: torch.from_numpy(array) for name, array in images.items()} | self.tokenize([""])

    def captions(self, row: Mapping[str, Any]) -> list[str]:
        """Return all captions of a row that are not empty, in order; raise `BrokenCaption` if there are none."""
        return usable_captions(row[self._check_columns([row])])

    def tokenize(self, captions: list[str]) -> dict[str, Tensor]:
        """Return the learner's `input_ids` of m captions, int64 [m, L], and the `attention_mask`, if any."""
        return self.texts[""](captions)

    def _encode_image(self, source: Any) -> dict[str, np.ndarray]:
        """Return one image in every geometry. If one of them fails, the row is skipped."""
        if isinstance(source, DecodedImage):
            return source.encode(self.geometries)
        image = decode_pixels(source, self.geometries.values(), scaled_jpeg_decoding=self.scaled_jpeg_decoding)
        return {
            prefix + name: array for prefix, g in self.geometries.items() for name, array in g.encode(image).items()
        }

    def _check_columns(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Check that there are both columns, and return the name of the caption column. Single rows may lack them."""
        if not rows:
            raise ValueError("JESTDataCollator got an empty list of rows; pass at least one row.")
        rows = [row for row in rows if not isinstance(row, BrokenRow)]
        caption_column = self.caption_column
        if caption_column is None:
            caption_column = next(
                (name for name in CAPTION_COLUMNS if not rows or any(name in row for row in rows)), None
            )
        if caption_column is None:
            raise ValueError(
                f"The rows have none of the columns {', '.join(CAPTION_COLUMNS)} (there are: {_names(rows[0])}); "
                "pass the column of the captions to JESTDataCollator as caption_column."
            )
        for option, column in (("image_column", self.image_column), ("caption_column", caption_column)):
            if rows and all(column not in row for row in rows):
                raise ValueError(
                    f"{option}={column!r} is not a column of the rows (there are: {_names(rows[0])}); pass one of "
                    f"these to JESTDataCollator as {option}."
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
        columns += f", scaled_jpeg_decoding={self.scaled_jpeg_decoding}"
        return f"JESTDataCollator({columns}, {', '.join(inputs)})"


def geometry_at(view: View, full: Geometry) -> Geometry | None:
    """Return the geometry of a view that is a smaller image; `None` for other views."""
    if view.kind == "num_patches" and isinstance(full, PatchGeometry):
        return replace(full, max_num_patches=int(view.value))
    if view.kind == "image" and isinstance(full, ImageGeometry):
        return full.scaled_to(int(view.value))
    return None


def _read_processor(processor: ProcessorMixin, name: str, max_length: int | None) -> tuple[Geometry, TextEncoder]:
    """Return the geometry and the text encoder of a processor; `name` is for error messages."""
    if any(getattr(processor, part, None) is None for part in ("image_processor", "tokenizer")):
        raise ValueError(
            f"{name} must have an image_processor and a tokenizer, and this {type(processor).__name__} has not; pass "
            "the model's processor, from AutoProcessor.from_pretrained or SiglipProcessor(image_processor, tokenizer)."
        )
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        raise ValueError(
            f"The tokenizer of {name} has no pad_token, which padding captions to one length needs; set "
            "tokenizer.pad_token, for instance to its eos_token."
        )
    # SigLIP 2 was trained on lower-cased captions. Siglip2Tokenizer lower-cases; Gemma's tokenizer, which belongs to
    # the fixed-resolution checkpoints (with a SiglipProcessor), does not, whatever class it was loaded as.
    is_gemma = isinstance(tokenizer, GemmaTokenizer) or _has_token(tokenizer, "<start_of_turn>")
    lower_case = isinstance(processor, Siglip2Processor) or is_gemma
    return faithful_geometry(processor.image_processor), TextEncoder(
        tokenizer, text_length(tokenizer, name, max_length), lower_case
    )


def _has_token(tokenizer: Any, token: str) -> bool:
    return tokenizer.convert_tokens_to_ids(token) not in (None, tokenizer.unk_token_id)


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in row if name not in ("example_id", "epoch"))  # these are added by Rows
