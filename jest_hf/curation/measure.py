# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Measure the rows of a data set for curation, in the order of the rows.

[`measure_captions`], [`measure_images`] and [`measure_alignment`] (the cosine of image and caption under a dual
encoder) take most of the time of curation. Images and alignment can be measured in parts, which [`join`] puts
together.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProcessorMixin

from jest_hf.curation.near_duplicates import HASH_BITS, perceptual_hash
from jest_hf.data.captions import CAPTION_COLUMNS, BrokenCaption, usable_captions
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.images.pixels import BrokenImage, decode_image
from jest_hf.models import DualEncoder, expose_temperature


Measures = Mapping[str, np.ndarray]


def measure_captions(rows: datasets.Dataset, caption_column: str | None = None) -> dict[str, np.ndarray]:
    """Measure the captions of N rows, without reading images. Of several captions the first non-empty one is used.

    Args:
        rows (`datasets.Dataset`): The whole data set, since `repeats` counts over all rows.
        caption_column (`str`, *optional*): Column of the captions; by default the first of `text`, `caption` and
            `captions` that the rows have.

    Returns:
        `dict[str, np.ndarray]`, each `[N]`: `readable_caption` (bool), `words` (int64), `letters` (float64, share of
        letters among the characters without spaces) and `repeats` (int64, number of rows with the same caption up to
        case and numbers, this row included; 0 without a caption).

    Raises:
        ValueError: If there is no such column.

    Example:

    ```python
    >>> import datasets
    >>> from jest_hf.curation import measure_captions
    >>> rows = datasets.Dataset.from_dict({"text": ["image 12", "Image 7", "a red circle", ""]})
    >>> {name: values.tolist() for name, values in measure_captions(rows).items() if name != "letters"}
    {'readable_caption': [True, True, True, False], 'words': [2, 2, 3, 0], 'repeats': [2, 2, 1, 0]}

    ```
    """
    column = caption_column_of(rows, caption_column)
    captions = []
    for batch in rows.select_columns([column]).with_format(None).iter(batch_size=1000):
        captions += [_first_caption(value) for value in batch[column]]
    keys = [re.sub(r"\d+", "0", " ".join(caption.lower().split())) for caption in captions]
    repeats = Counter(keys)
    visible = [caption.replace(" ", "") for caption in captions]
    return {
        "readable_caption": np.array([bool(caption) for caption in captions], dtype=bool),
        "words": np.array([len(caption.split()) for caption in captions], dtype=np.int64),
        "letters": np.array(
            [sum(map(str.isalpha, caption)) / max(len(caption), 1) for caption in visible], dtype=np.float64
        ),
        "repeats": np.array([repeats[key] if key else 0 for key in keys], dtype=np.int64),
    }


def measure_images(rows: datasets.Dataset, image_column: str = "image") -> dict[str, np.ndarray]:
    """Measure the images of N rows, each decoded once, in this process.

    Args:
        rows (`datasets.Dataset`): The data.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images.

    Returns:
        `dict[str, np.ndarray]`: `readable_image` (bool `[N]`), `side` (int64 `[N]`, pixels of the shorter side),
        `contrast` and `entropy` (float64 `[N]`, as in [`CurationFilters`]; NaN for a broken image), and `hash` (uint8
        `[N, 24]`, from [`~jest_hf.curation.near_duplicates.perceptual_hash`]).

    Raises:
        ValueError: If there is no such column.
    """
    n = len(rows)
    images = Rows(rows.select_columns([image_column]) if image_column in rows.column_names else rows, image_column)
    readable, side = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
    contrast, entropy = np.full(n, np.nan), np.full(n, np.nan)
    hashes = np.zeros((n, HASH_BITS // 8), dtype=np.uint8)
    for index in range(n):
        try:
            image = decode_image(images[index][image_column])
        except BrokenImage:
            continue
        readable[index], side[index] = True, min(image.size)
        luminance = np.asarray(image.convert("L"))
        shares = np.bincount(luminance.ravel(), minlength=256) / luminance.size
        contrast[index] = luminance.std()
        entropy[index] = -sum(share * math.log2(share) for share in shares[shares > 0].tolist())
        hashes[index] = perceptual_hash(image)
    return {"readable_image": readable, "side": side, "contrast": contrast, "entropy": entropy, "hash": hashes}


def measure_alignment(
    rows: datasets.Dataset,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    *,
    image_column: str = "image",
    caption_column: str | None = None,
    max_length: int | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
) -> dict[str, np.ndarray]:
    """Measure how well image and caption of N rows match: the cosine of their embeddings under a dual encoder.

    Args:
        rows (`datasets.Dataset`): The data. Of several captions the first non-empty one is used.
        model (`transformers.PreTrainedModel`): A SigLIP, SigLIP 2 or CLIP model. It runs on its device, and is left in
            eval mode.
        processor (`transformers.ProcessorMixin`): Processor of the model.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images.
        caption_column (`str`, *optional*): Column of the captions; by default the first of `text`, `caption` and
            `captions` that the rows have.
        max_length (`int`, *optional*): Length of a text in tokens; by default the limit of the tokenizer, or 64 if the
            limit is above 1024.
        batch_size (`int`, *optional*, defaults to `256`): Rows in a forward.
        num_workers (`int`, *optional*, defaults to `0`): Loader workers that decode images.

    Returns:
        `dict[str, np.ndarray]`: `alignment`, float32 `[N]`, the cosine; NaN if the image or the caption cannot be
        read.
    """
    column = caption_column_of(rows, caption_column)
    collator = JESTDataCollator(processor, image_column=image_column, caption_column=column, max_length=max_length)

    def collate(batch: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        return collator([{**row, column: _first_caption(row[column])} for row in batch])

    expose_temperature(model)
    view = DualEncoder(model.config, processor)
    loader = DataLoader(Rows(rows, image_column), batch_size=batch_size, collate_fn=collate, num_workers=num_workers)
    cosines = []
    for batch in loader:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        embeddings = view.score(model, batch, batch_size)
        cosine = (embeddings.image * embeddings.text).sum(dim=-1)
        cosines.append(cosine.where(batch["valid"], torch.nan).cpu())
    return {"alignment": torch.cat(cosines).numpy()}


def join(parts: Iterable[Measures]) -> dict[str, np.ndarray]:
    """Concatenate the values of consecutive parts of the rows (except for `repeats`, which counts over all rows).

    Example:

    ```python
    >>> import numpy as np
    >>> from jest_hf.curation import join
    >>> join([{"alignment": np.array([0.25])}, {"alignment": np.array([0.5, 0.75])}])
    {'alignment': array([0.25, 0.5 , 0.75])}

    ```
    """
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def caption_column_of(rows: datasets.Dataset, caption_column: str | None = None) -> str:
    """Return the name of the caption column.

    Args:
        rows (`datasets.Dataset`): The data.
        caption_column (`str`, *optional*): The column; by default the first of `text`, `caption` and `captions` that
            the rows have.

    Raises:
        ValueError: If the rows have no such column.
    """
    candidates = CAPTION_COLUMNS if caption_column is None else (caption_column,)
    found = next((name for name in candidates if name in rows.column_names), None)
    if found is None:
        raise ValueError(
            f"the data have none of the columns {', '.join(candidates)} (there are: {', '.join(rows.column_names)}); "
            "set caption_column to the column of the captions."
        )
    return found


def _first_caption(value: Any) -> str:
    """Return the first caption that is not empty, stripped of spaces, or an empty string."""
    try:
        return usable_captions(value)[0].strip()
    except BrokenCaption:
        return ""


__all__ = [
    "Measures",
    "caption_column_of",
    "join",
    "measure_alignment",
    "measure_captions",
    "measure_images",
]
