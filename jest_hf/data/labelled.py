# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows with labels to super-batch: images or texts with a class each, and texts whose labels are their own tokens.

As in [`~jest_hf.JESTDataCollator`], shapes never depend on the data: a row that cannot be used (a broken image, an
empty text, no label) keeps its place, blank, with nothing to predict and `valid` False.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from jest_hf.batch import REF_PREFIX
from jest_hf.data.captions import TextEncoder, text_length
from jest_hf.data.classes import BrokenExample, Classes
from jest_hf.data.collator import MAX_LOGGED_SKIPS
from jest_hf.images.faithful import faithful_geometry
from jest_hf.images.pixels import BrokenImage, Geometry, decode_image
from jest_hf.losses.pointwise import IGNORED


logger = logging.getLogger(__name__)


class LabelledCollator(ABC):
    """
    What the collators of this file have in common: places, skips, columns and labels.

    A call with a list of rows (`dict`; `example_id` comes from [`~data.rows.Rows`]) returns a `dict` of tensors: what
    the models' `forward` takes (with the prefix `ref_` what a reference reads differently), `labels`, `example_id`
    int64 [B], and `valid` bool [B], False for rows that could not be used.

    Args:
        processor: The learner's image processor or tokenizer.
        columns (`dict`): The columns that are read, by the name of the option that names them.

    Attributes:
        image_column (`str`, *optional*): Column of the images, where there are images.
        small_columns (`tuple[str, ...]`): Columns that tell data sets apart and can be read whole.
    """

    image_column: str | None = None

    def __init__(self, processor: Any, **columns: str) -> None:
        self.processor = processor
        self.ref_processor: Any | None = None
        self.columns = columns
        self.needs_labels = True
        self.small_columns = tuple(column for column in columns.values() if column != self.image_column)
        self._logged_skips = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        self._check_columns(rows)
        ids = torch.tensor([row.get("example_id", position) for position, row in enumerate(rows)], dtype=torch.int64)
        read = []
        for position, row in enumerate(rows):
            try:
                read.append(self._read(row))
            except (BrokenImage, BrokenExample) as reason:
                self._log_skip(int(ids[position]), reason)
                read.append(None)
        batch = self._assemble(read)
        if self.needs_labels:
            valid = (batch["labels"] != IGNORED).reshape(len(rows), -1).any(dim=1)
        else:
            valid = torch.tensor([one is not None for one in read])
        return batch | {"example_id": ids, "valid": valid}

    def blank(self) -> dict[str, Tensor]:
        """A batch of one row that says nothing, for a rank that has no rows and takes part in a forward."""
        batch = self._assemble([None])
        return batch | {"example_id": torch.zeros(1, dtype=torch.int64), "valid": torch.zeros(1, dtype=torch.bool)}

    def with_reference(self, ref_processor: Any | None) -> LabelledCollator:
        """The same collator, for a reference that reads with `ref_processor` (`None`: what the learner reads)."""
        other = copy.copy(self)
        other._add_reference(ref_processor)
        return other

    def without_labels(self) -> LabelledCollator:
        """The same collator, to predict with: rows need no label, and all that could be read are `valid`."""
        other = copy.copy(self)
        other.needs_labels = False
        return other

    @abstractmethod
    def _add_reference(self, ref_processor: Any | None) -> None:
        """Read for a reference too; `None`: for none."""

    @abstractmethod
    def _read(self, row: Mapping[str, Any]) -> Any:
        """What is needed of one row; `BrokenImage` or `BrokenExample` where it is not there."""

    @abstractmethod
    def _assemble(self, read: Sequence[Any]) -> dict[str, Tensor]:
        """Inputs and labels of what was read, blank where that is `None`."""

    def _check_columns(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if not rows:
            raise ValueError(f"{type(self).__name__} got an empty list; give it at least one row.")
        for option, column in self.columns.items():
            lacking = next((row for row in rows if column not in row), None)
            if lacking is not None and (self.needs_labels or option != "label_column"):
                raise ValueError(
                    f"The rows have no column {column!r} (there are: {', '.join(map(str, lacking))}); pass {option} "
                    f"to {type(self).__name__}."
                )

    def _log_skip(self, example_id: int, reason: Exception) -> None:
        if self._logged_skips < MAX_LOGGED_SKIPS:
            self._logged_skips += 1
            last = " Further skips are counted, not logged." if self._logged_skips == MAX_LOGGED_SKIPS else ""
            logger.warning("Skipped example %d: %s.%s", example_id, reason, last)

    def __repr__(self) -> str:
        columns = ", ".join(f"{option}={column!r}" for option, column in self.columns.items())
        return f"{type(self).__name__}({columns})"


class ClassCollator(LabelledCollator):
    """
    A collator of rows with a class each.

    Args:
        processor: The learner's image processor or tokenizer.
        label2id (`dict[str, int]`): The classes, as the model's configuration names them.
        columns (`dict`): See [`LabelledCollator`]; `label_column` is one of them.
    """

    def __init__(self, processor: Any, label2id: Mapping[str, int], **columns: str) -> None:
        super().__init__(processor, **columns)
        self.classes = Classes(label2id, columns["label_column"])

    def check_labels(self, dataset: Any) -> None:
        """See [`Classes.check`]."""
        self.classes.check(dataset, needed=self.needs_labels)

    def _label(self, row: Mapping[str, Any]) -> int:
        """The number of a row's class; where labels are not needed, -100 for a row without a usable one."""
        try:
            return self.classes.number(row)
        except BrokenExample:
            if self.needs_labels:
                raise
            return IGNORED


class ImageLabelCollator(ClassCollator):
    """
    Images with a class each: `pixel_values` uint8 [B, 3, H, W], not normalised, and `labels` int64 [B].

    Args:
        image_processor (`transformers.BaseImageProcessor`): The learner's.
        label2id (`dict[str, int]`): The classes, as the model's configuration names them.
        ref_image_processor (`transformers.BaseImageProcessor`, *optional*): The reference's, where it has its own:
            there is `ref_pixel_values` then, if it gives other pixels.
        image_column (`str`, *optional*, defaults to `"image"`): See [`~images.pixels.decode_image`].
        label_column (`str`, *optional*, defaults to `"label"`): Numbers or names of classes; -1 and `None` are none.

    Raises:
        ValueError: In a call, if the rows lack a column.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        label2id: Mapping[str, int],
        ref_image_processor: BaseImageProcessor | None = None,
        *,
        image_column: str = "image",
        label_column: str = "label",
    ) -> None:
        self.image_column = image_column
        super().__init__(image_processor, label2id, image_column=image_column, label_column=label_column)
        self.geometries: dict[str, Geometry] = {"": faithful_geometry(image_processor)}
        self._add_reference(ref_image_processor)

    def _add_reference(self, ref_processor: BaseImageProcessor | None) -> None:
        self.ref_processor = ref_processor
        self.geometries = {"": self.geometries[""]}
        geometry = self.geometries[""] if ref_processor is None else faithful_geometry(ref_processor)
        if geometry != self.geometries[""]:
            self.geometries[REF_PREFIX] = geometry

    def _read(self, row: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], int]:
        label = self._label(row)
        image = decode_image(row[self.image_column], self.geometries.values())
        views = {prefix: geometry.encode(image) for prefix, geometry in self.geometries.items()}
        return {prefix + key: array for prefix, view in views.items() for key, array in view.items()}, label

    def _assemble(self, read: Sequence[tuple[dict[str, np.ndarray], int] | None]) -> dict[str, Tensor]:
        n = len(read)
        pixels = {prefix + key: array for prefix, g in self.geometries.items() for key, array in g.empty(n).items()}
        for position, one in enumerate(read):
            for key, array in one[0].items() if one else ():
                pixels[key][position] = array
        labels = torch.tensor([one[1] if one else IGNORED for one in read], dtype=torch.int64)
        return {key: torch.from_numpy(array) for key, array in pixels.items()} | {"labels": labels}


class TextLabelCollator(ClassCollator):
    """
    Texts with a class each: `input_ids` and, where the tokenizer gives one, `attention_mask`, int64 [B, L] padded to
    L, and `labels` int64 [B].

    Args:
        tokenizer (`transformers.PreTrainedTokenizerBase`): The learner's.
        label2id (`dict[str, int]`): The classes, as the model's configuration names them.
        ref_tokenizer (`transformers.PreTrainedTokenizerBase`, *optional*): The reference's, where it has its own:
            there is `ref_input_ids` (and its companion) then, if it gives other tokens.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the texts.
        label_column (`str`, *optional*, defaults to `"label"`): Numbers or names of classes; -1 and `None` are none.
        max_length (`int`, *optional*): Length L in tokens; by default the tokenizer's own limit, or 64 where it has
            none or one above 1024.

    Raises:
        ValueError: At construction, if a tokenizer cannot pad or `max_length` does not suit it; in a call, if the rows
            lack a column.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        label2id: Mapping[str, int],
        ref_tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        text_column: str = "text",
        label_column: str = "label",
        max_length: int | None = None,
    ) -> None:
        super().__init__(tokenizer, label2id, text_column=text_column, label_column=label_column)
        self.max_length = max_length
        self.texts: dict[str, TextEncoder] = {"": _text_encoder(tokenizer, "the learner", max_length)}
        self._add_reference(ref_tokenizer)

    def _add_reference(self, ref_processor: PreTrainedTokenizerBase | None) -> None:
        self.ref_processor = ref_processor
        self.texts = {"": self.texts[""]}
        if ref_processor is not None:
            text = _text_encoder(ref_processor, "the reference", self.max_length)
            if not text.same_as(self.texts[""]):
                self.texts[REF_PREFIX] = text

    def _read(self, row: Mapping[str, Any]) -> tuple[str, int]:
        return _text(row[self.columns["text_column"]]), self._label(row)

    def _assemble(self, read: Sequence[tuple[str, int] | None]) -> dict[str, Tensor]:
        texts = [one[0] if one else "" for one in read]
        inputs = {prefix + key: ids for prefix, text in self.texts.items() for key, ids in text(texts).items()}
        labels = torch.tensor([one[1] if one else IGNORED for one in read], dtype=torch.int64)
        return inputs | {"labels": labels}


class LanguageModelCollator(LabelledCollator):
    """
    Texts for a causal language model: `input_ids` and `attention_mask`, int64 [B, L] padded to L, and `labels` int64
    [B, L]: the ids themselves, -100 on padding and on the first token of a text, before which there is nothing to
    predict it from (a tokenizer may pad on the left). A text of fewer than two tokens is skipped.

    Args:
        tokenizer (`transformers.PreTrainedTokenizerBase`): The learner's.
        ref_tokenizer (`transformers.PreTrainedTokenizerBase`, *optional*): The reference's, which must give the same
            tokens: losses of others do not compare.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the texts; longer ones are truncated.
        max_length (`int`, *optional*): Length L in tokens; by default the tokenizer's own limit, or 64 where it has
            none or one above 1024.

    Raises:
        ValueError: At construction, if a tokenizer cannot pad or tells no padding, the two differ, or `max_length`
            does not suit them; in a call, if the rows lack a column.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ref_tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        text_column: str = "text",
        max_length: int | None = None,
    ) -> None:
        super().__init__(tokenizer, text_column=text_column)
        if "attention_mask" not in tokenizer.model_input_names:
            raise ValueError(
                "the tokenizer gives no attention_mask, which tells padding from text that is to be predicted; add "
                "it to tokenizer.model_input_names."
            )
        self.max_length = max_length
        self.text = _text_encoder(tokenizer, "the learner", max_length)
        self._add_reference(ref_tokenizer)

    def _add_reference(self, ref_processor: PreTrainedTokenizerBase | None) -> None:
        self.ref_processor = ref_processor
        if ref_processor is None:
            return
        if not _text_encoder(ref_processor, "the reference", self.max_length).same_as(self.text):
            raise ValueError(
                "the reference's tokenizer gives other tokens than the learner's, and losses of different tokens do "
                "not compare; take a reference with the learner's tokenizer."
            )

    def _read(self, row: Mapping[str, Any]) -> str:
        return _text(row[self.columns["text_column"]])

    def _assemble(self, read: Sequence[str | None]) -> dict[str, Tensor]:
        inputs = self.text([text or "" for text in read])
        usable = torch.tensor([text is not None for text in read])[:, None]
        targets = usable & (inputs["attention_mask"] == 1) & (inputs["attention_mask"].cumsum(dim=1) > 1)
        return inputs | {"labels": inputs["input_ids"].masked_fill(~targets, IGNORED)}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BrokenExample(f"its text is a {type(value).__name__}, not a string")
    if not value.strip():
        raise BrokenExample("its text is empty")
    return value


def _text_encoder(tokenizer: PreTrainedTokenizerBase, owner: str, max_length: int | None) -> TextEncoder:
    if tokenizer.pad_token is None:
        raise ValueError(
            f"The tokenizer of {owner} has no pad_token, and texts are padded to one length; set one, such as its "
            "eos_token."
        )
    return TextEncoder(tokenizer, text_length(tokenizer, owner, max_length), lower_case=False)


__all__ = ["ClassCollator", "ImageLabelCollator", "LabelledCollator", "LanguageModelCollator", "TextLabelCollator"]
