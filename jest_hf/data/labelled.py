# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Data collators for images or texts with a class each, and for texts of a causal language model.

As in [`~jest_hf.JESTDataCollator`], the shapes do not depend on the data: a row that cannot be used (a broken image,
an empty text, no label) becomes a blank row without a label, and `valid` is False.
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
from jest_hf.data.broken import readable
from jest_hf.data.captions import TextEncoder, not_unicode, text_encoder
from jest_hf.data.classes import BrokenExample, Classes, SeveralLabels
from jest_hf.data.collator import MAX_LOGGED_SKIPS
from jest_hf.images.decoding import DecodedImage, log_jpeg_decoder
from jest_hf.images.faithful import faithful_geometry
from jest_hf.images.pixels import BrokenImage, Geometry, decode_pixels
from jest_hf.losses.pointwise import IGNORED


logger = logging.getLogger(__name__)


class LabelledCollator(ABC):
    """Base class of the collators of this file: skips broken rows, and checks columns and labels.

    A call takes a list of B rows (`dict`; [`~jest_hf.data.rows.Rows`] adds `example_id`) and returns a `dict` of
    tensors: inputs of the learner's `forward`, inputs of the reference's `forward` that differ (prefix `ref_`),
    `labels`, `example_id` int64 [B], and `valid` bool [B], False for rows that could not be used.

    Args:
        processor: The learner's image processor or tokenizer.
        columns (`dict`): Column names, by option, such as `label_column="label"`.

    Attributes:
        image_column (`str`, *optional*): Column of the images; `None` for texts.
        small_columns (`tuple[str, ...]`): The other columns. The fingerprint of a data set reads them whole.
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
        needed = self._check_columns(rows)
        ids = torch.tensor([row.get("example_id", position) for position, row in enumerate(rows)], dtype=torch.int64)
        read, several = [], []
        for position, row in enumerate(rows):
            try:
                read.append(self._read(readable(row, needed)))
            except (BrokenImage, BrokenExample) as reason:
                self._log_skip(int(ids[position]), reason)
                read.append(None)
                several += [reason] * isinstance(reason, SeveralLabels)
        if len(several) == len(rows):
            raise ValueError(str(several[0]))
        batch = self._assemble(read)
        if self.needs_labels:
            valid = (batch["labels"] != IGNORED).reshape(len(rows), -1).any(dim=1)
        else:
            valid = torch.tensor([one is not None for one in read])
        return batch | {"example_id": ids, "valid": valid}

    def blank(self) -> dict[str, Tensor]:
        """Return a batch of one blank row.

        A rank without rows feeds this batch to the model, so that it takes part in a forward that is a collective.
        """
        batch = self._assemble([None])
        return batch | {"example_id": torch.zeros(1, dtype=torch.int64), "valid": torch.zeros(1, dtype=torch.bool)}

    def with_reference(self, ref_processor: Any | None) -> LabelledCollator:
        """Return a copy of this collator for another reference.

        Args:
            ref_processor (*optional*): Image processor or tokenizer of the reference; `None` for a reference that
                reads the learner's inputs.
        """
        other = copy.copy(self)
        other._add_reference(ref_processor)
        return other

    def without_labels(self) -> LabelledCollator:
        """Return a copy of this collator for prediction: a row that can be read is `valid`, also without a label."""
        other = copy.copy(self)
        other.needs_labels = False
        return other

    @abstractmethod
    def _add_reference(self, ref_processor: Any | None) -> None:
        """Add the inputs of a reference that reads with `ref_processor`, in place; `None` removes them."""

    @abstractmethod
    def _read(self, row: Mapping[str, Any]) -> Any:
        """Return input and label of one row; raise `BrokenImage` or `BrokenExample` if it cannot be used."""

    @abstractmethod
    def _assemble(self, read: Sequence[Any]) -> dict[str, Tensor]:
        """Return the batch of the results of `_read`, with a blank row for each `None`."""

    def _check_columns(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        if not rows:
            raise ValueError(f"{type(self).__name__} got an empty list of rows; pass at least one row.")
        needed = {name: column for name, column in self.columns.items() if self.needs_labels or name != "label_column"}
        for option, column in needed.items():
            if all(column not in row for row in rows):
                raise ValueError(
                    f"{option}={column!r} is not a column of the rows (there are: {', '.join(map(str, rows[0]))}); "
                    f"pass one of these to {type(self).__name__} as {option}."
                )
        return list(needed.values())

    def _log_skip(self, example_id: int, reason: Exception) -> None:
        if self._logged_skips < MAX_LOGGED_SKIPS:
            self._logged_skips += 1
            last = " Further skips are counted, not logged." if self._logged_skips == MAX_LOGGED_SKIPS else ""
            logger.warning("Skipped example %d: %s.%s", example_id, reason, last)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={column!r}' for name, column in self.columns.items())})"


class ClassCollator(LabelledCollator):
    """Base class of the collators of rows with one class each.

    Args:
        processor: The learner's image processor or tokenizer.
        label2id (`dict[str, int]`): Number of each class by name, from the model's configuration.
        columns (`dict`): As in [`LabelledCollator`]; `label_column` is required.
    """

    def __init__(self, processor: Any, label2id: Mapping[str, int], **columns: str) -> None:
        super().__init__(processor, **columns)
        self.classes = Classes(label2id, columns["label_column"])

    def check_labels(self, dataset: Any) -> None:
        """Check the labels of a whole data set, as [`~jest_hf.data.classes.Classes.check`] does."""
        self.classes.check(dataset, needed=self.needs_labels)

    def _label(self, row: Mapping[str, Any]) -> int:
        """Return the number of a row's class; if labels are not needed, -100 for a row without a usable label."""
        try:
            return self.classes.number(row)
        except BrokenExample:
            if self.needs_labels:
                raise
            return IGNORED


class ImageLabelCollator(ClassCollator):
    """Makes a super-batch of images with one class each.

    A call returns `pixel_values` uint8 [B, 3, H, W], not normalised, `labels` int64 [B], `example_id` int64 [B] and
    `valid` bool [B].

    Args:
        image_processor (`transformers.BaseImageProcessor`): Image processor of the learner.
        label2id (`dict[str, int]`): Number of each class by name, from the model's configuration.
        ref_image_processor (`transformers.BaseImageProcessor`, *optional*): Image processor of the reference; by
            default the learner's. If it gives other pixels, they are added as `ref_pixel_values`.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images (see
            [`~jest_hf.images.decoding.decode_image`]).
        label_column (`str`, *optional*, defaults to `"label"`): Column of the labels, numbers or names of classes; -1
            and `None` mean no label.
        scaled_jpeg_decoding (`bool`, *optional*, defaults to `False`): Whether to decode a JPEG at 1/2, 1/4 or 1/8 of
            its size where that is enough for the model. This is faster and changes pixels by up to 40 of 255 levels.

    Raises:
        ValueError: In a call, if no row has a column.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import ViTImageProcessorPil
    >>> from jest_hf.data.labelled import ImageLabelCollator
    >>> processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    >>> collator = ImageLabelCollator(processor, label2id={"cat": 0, "dog": 1})
    >>> batch = collator([{"image": Image.new("RGB", (40, 30)), "label": "dog"}])
    >>> list(batch["pixel_values"].shape), batch["labels"].tolist(), batch["valid"].tolist()
    ([1, 3, 16, 16], [1], [True])

    ```
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        label2id: Mapping[str, int],
        ref_image_processor: BaseImageProcessor | None = None,
        *,
        image_column: str = "image",
        label_column: str = "label",
        scaled_jpeg_decoding: bool = False,
    ) -> None:
        self.image_column: str = image_column
        self.scaled_jpeg_decoding = scaled_jpeg_decoding
        log_jpeg_decoder()
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
        label, source = self._label(row), row[self.image_column]
        if not isinstance(source, DecodedImage):
            image = decode_pixels(source, self.geometries.values(), scaled_jpeg_decoding=self.scaled_jpeg_decoding)
            source = DecodedImage({geometry: geometry.encode(image) for geometry in self.geometries.values()})
        return source.encode(self.geometries), label

    def _assemble(self, read: Sequence[tuple[dict[str, np.ndarray], int] | None]) -> dict[str, Tensor]:
        n = len(read)
        pixels = {prefix + key: array for prefix, g in self.geometries.items() for key, array in g.empty(n).items()}
        for position, one in enumerate(read):
            for key, array in one[0].items() if one else ():
                pixels[key][position] = array
        labels = torch.tensor([one[1] if one else IGNORED for one in read], dtype=torch.int64)
        return {key: torch.from_numpy(array) for key, array in pixels.items()} | {"labels": labels}


class TextLabelCollator(ClassCollator):
    """Makes a super-batch of texts with one class each.

    A call returns `input_ids` and, if the tokenizer returns one, `attention_mask`, int64 [B, L] padded to L, `labels`
    int64 [B], `example_id` int64 [B] and `valid` bool [B].

    Args:
        tokenizer (`transformers.PreTrainedTokenizerBase`): Tokenizer of the learner.
        label2id (`dict[str, int]`): Number of each class by name, from the model's configuration.
        ref_tokenizer (`transformers.PreTrainedTokenizerBase`, *optional*): Tokenizer of the reference; by default the
            learner's. If it gives other tokens, they are added as `ref_input_ids` (and `ref_attention_mask`).
        text_column (`str`, *optional*, defaults to `"text"`): Column of the texts.
        label_column (`str`, *optional*, defaults to `"label"`): Column of the labels, numbers or names of classes; -1
            and `None` mean no label.
        max_length (`int`, *optional*): Length L in tokens; by default the tokenizer's limit, or 64 if the limit is
            above 1024.

    Raises:
        ValueError: At construction, if a tokenizer has no `pad_token` or `max_length` exceeds its limit; in a call, if
            no row has a column.

    Example:

    ```python
    >>> from jest_hf.data import train_tokenizer
    >>> from jest_hf.data.labelled import TextLabelCollator
    >>> tokenizer = train_tokenizer(["good film", "bad film"], max_length=8)
    >>> collator = TextLabelCollator(tokenizer, label2id={"bad": 0, "good": 1})
    >>> batch = collator([{"text": "good film", "label": "good"}, {"text": "", "label": "bad"}])
    >>> list(batch["input_ids"].shape), batch["labels"].tolist(), batch["valid"].tolist()
    ([2, 8], [1, -100], [True, False])

    ```
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
        self.texts: dict[str, TextEncoder] = {"": text_encoder(tokenizer, "the learner", max_length)}
        self._add_reference(ref_tokenizer)

    def _add_reference(self, ref_processor: PreTrainedTokenizerBase | None) -> None:
        self.ref_processor = ref_processor
        self.texts = {"": self.texts[""]}
        if ref_processor is not None:
            text = text_encoder(ref_processor, "the reference", self.max_length)
            if not text.same_as(self.texts[""]):
                self.texts[REF_PREFIX] = text

    def _read(self, row: Mapping[str, Any]) -> tuple[str, int]:
        return _text(row[self.columns["text_column"]]), self._label(row)

    def _assemble(self, read: Sequence[tuple[str, int] | None]) -> dict[str, Tensor]:
        texts = [one[0] if one else "" for one in read]
        inputs = {prefix + key: ids for prefix, text in self.texts.items() for key, ids in text(texts).items()}
        return inputs | {"labels": torch.tensor([one[1] if one else IGNORED for one in read], dtype=torch.int64)}


class LanguageModelCollator(LabelledCollator):
    """Makes a super-batch of texts for a causal language model.

    A call returns `input_ids` and `attention_mask`, int64 [B, L] padded to L, `labels` int64 [B, L], `example_id`
    int64 [B] and `valid` bool [B]. The labels are the ids, and -100 on padding and on the first token of a text, which
    has no token before it to be predicted from (a tokenizer may pad on the left). A text of one token is skipped.

    Args:
        tokenizer (`transformers.PreTrainedTokenizerBase`): Tokenizer of the learner.
        ref_tokenizer (`transformers.PreTrainedTokenizerBase`, *optional*): Tokenizer of the reference, by default the
            learner's. It must give the same tokens, since losses of different tokens cannot be compared.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the texts. Texts of more than L tokens are
            truncated.
        max_length (`int`, *optional*): Length L in tokens; by default the tokenizer's limit, or 64 if the limit is
            above 1024.

    Raises:
        ValueError: At construction, if a tokenizer has no `pad_token`, the learner's returns no `attention_mask`, the
            two give different tokens, or `max_length` exceeds their limit; in a call, if no row has a column.

    Example:

    ```python
    >>> from jest_hf.data import train_tokenizer
    >>> from jest_hf.data.labelled import LanguageModelCollator
    >>> tokenizer = train_tokenizer(["a b c"], max_length=6)
    >>> tokenizer.model_input_names = ["input_ids", "attention_mask"]
    >>> LanguageModelCollator(tokenizer)([{"text": "a b"}])["labels"]  # four bytes of " a b", </s>, padding
    tensor([[-100,   67,  223,   68,    1, -100]])

    ```
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
                "the tokenizer returns no attention_mask, which is needed to leave padding out of the loss; add "
                '"attention_mask" to tokenizer.model_input_names.'
            )
        self.max_length = max_length
        self.text = text_encoder(tokenizer, "the learner", max_length)
        self._add_reference(ref_tokenizer)

    def _add_reference(self, ref_processor: PreTrainedTokenizerBase | None) -> None:
        self.ref_processor = ref_processor
        if ref_processor is None:
            return
        if not text_encoder(ref_processor, "the reference", self.max_length).same_as(self.text):
            raise ValueError(
                "the reference's tokenizer gives other tokens than the learner's, so their losses cannot be compared; "
                "pass a reference with the learner's tokenizer."
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
    if (wrong := not_unicode(value)) is not None:
        raise BrokenExample(f"its text {wrong}")
    return value


__all__ = ["ClassCollator", "ImageLabelCollator", "LabelledCollator", "LanguageModelCollator", "TextLabelCollator"]
