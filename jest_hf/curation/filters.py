# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Filters that make a small curated set of a large noisy one: what a reference is trained on (JEST++).

Filtering is two steps. Three functions measure a `datasets.Dataset` row by row, in the order of its rows:
[`measure_captions`], [`measure_images`] and [`measure_alignment`] (how well image and caption agree in the eyes of a
given dual encoder). [`curate`] then keeps the rows whose values lie within the limits of a [`CurationFilters`], and
says how many passed each filter. Measuring is what takes time; it can be done in parts, whose values are put together
with [`join`], and other limits cost nothing.

A row that cannot be read is measured as such (`readable` False, NaN), dropped by the first filter and counted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProcessorMixin

from jest_hf.curation.near_duplicates import HASH_BITS, first_of_near_duplicates, perceptual_hash
from jest_hf.data.captions import CAPTION_COLUMNS, BrokenCaption, usable_captions
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.images.pixels import BrokenImage, decode_image
from jest_hf.models import DualEncoder, expose_temperature


Measures = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class CurationFilters:
    """
    Limits of the values of a row; `None` switches a filter off. A row stays if it passes all of them.

    Args:
        min_words (`int`, *optional*, defaults to `1`): Fewest words in the caption.
        min_letters (`float`, *optional*): Smallest share of letters among the caption's characters, spaces apart, in
            [0, 1]: file names and numbers have few.
        max_repeats (`int`, *optional*): Most rows whose caption is the same but for case and numbers: "image 12" and
            "Image 7" are the same boilerplate.
        min_side (`int`, *optional*): Fewest pixels of the image's shorter side.
        min_contrast (`float`, *optional*): Smallest standard deviation of the luminance, of 0 to 127.5.
        min_entropy (`float`, *optional*): Smallest entropy of the luminance, of 0 to 8 bits: a blank image has 0.
        min_alignment (`float`, *optional*): Smallest cosine between the embeddings of image and caption, in [-1, 1].
            What is small depends on the model; [`top_alignment`] does not.
        top_alignment (`float`, *optional*): The part of the rows that passed everything above which has the largest
            cosine, in (0, 1].
        duplicate_distance (`int`, *optional*): Of images whose perceptual hashes differ in at most so many of their
            192 bits, the one whose caption is best aligned stays.

    Raises:
        ValueError: for a limit outside of its range.
    """

    min_words: int | None = 1
    min_letters: float | None = None
    max_repeats: int | None = None
    min_side: int | None = None
    min_contrast: float | None = None
    min_entropy: float | None = None
    min_alignment: float | None = None
    top_alignment: float | None = None
    duplicate_distance: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not low <= value <= high):
                raise ValueError(f"{name}={value!r} must lie in [{low}, {high}]; leave it out to switch it off.")
        if self.top_alignment == 0:
            raise ValueError("top_alignment=0 would keep no row; give the part that is to be kept, such as 0.3.")

    @property
    def needs_images(self) -> bool:
        """Whether [`measure_images`] is needed; without it broken images are still found by [`measure_alignment`]."""
        return any(
            value is not None
            for value in (self.min_side, self.min_contrast, self.min_entropy, self.duplicate_distance)
        )

    @property
    def needs_alignment(self) -> bool:
        """Whether [`measure_alignment`] is needed; without it the first of near duplicates stays."""
        return self.min_alignment is not None or self.top_alignment is not None


_RANGES = {
    "min_words": (1, math.inf),
    "min_letters": (0.0, 1.0),
    "max_repeats": (1, math.inf),
    "min_side": (1, math.inf),
    "min_contrast": (0.0, 127.5),
    "min_entropy": (0.0, 8.0),
    "min_alignment": (-1.0, 1.0),
    "top_alignment": (0.0, 1.0),
    "duplicate_distance": (0, HASH_BITS),
}


@dataclass(frozen=True)
class FilterResult:
    """One filter as it was applied: its name, its limit (`None`: no limit to set), and the rows left after it."""

    name: str
    limit: float | None
    rows_left: int


# ---- Measuring ----


def measure_captions(rows: datasets.Dataset, caption_column: str | None = None) -> dict[str, np.ndarray]:
    """
    Measures the captions of N rows; of several captions in a row the first that is not empty. Reads no image.

    Args:
        rows (`datasets.Dataset`): The data, whole: repetitions are counted among them.
        caption_column (`str`, *optional*): Default: `text`, `caption` or `captions`.

    Returns:
        `dict[str, np.ndarray]`, each `[N]`: `readable_caption` (bool), `words` (int64), `letters` (float64, share of
        the characters that are no spaces) and `repeats` (int64, rows with the same caption but for case and numbers,
        this one included; 0 where there is none).

    Raises:
        ValueError: if there is no such column.
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
    """
    Measures the images of N rows, each decoded once, in this process.

    Args:
        rows (`datasets.Dataset`): The data.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images.

    Returns:
        `dict[str, np.ndarray]`: `readable_image` (bool `[N]`), `side` (int64 `[N]`, pixels of the shorter side),
        `contrast` and `entropy` (float64 `[N]`, see [`CurationFilters`]; NaN where there is no image), and `hash`
        (uint8 `[N, 24]`, see [`~jest_hf.curation.near_duplicates.perceptual_hash`]).

    Raises:
        ValueError: if there is no such column.
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
    """
    How well image and caption of N rows agree, in the eyes of a dual encoder, on the device where that is.

    Args:
        rows (`datasets.Dataset`): The data. Of several captions in a row the first that is not empty counts.
        model (`transformers.PreTrainedModel`): A SigLIP, SigLIP 2 or CLIP; it is left in eval mode.
        processor (`transformers.ProcessorMixin`): The model's processor.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images.
        caption_column (`str`, *optional*): Default: `text`, `caption` or `captions`.
        max_length (`int`, *optional*): Text tokens; default: the processor's.
        batch_size (`int`, *optional*, defaults to `256`): Rows in a forward.
        num_workers (`int`, *optional*, defaults to `0`): Processes that decode.

    Returns:
        `dict[str, np.ndarray]`: `alignment`, float32 `[N]`, the cosine of the two embeddings; NaN for rows whose image
        or caption cannot be read.
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
    """The values of all rows from those of consecutive parts of them (not of `repeats`, which is about all rows)."""
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# ---- Filtering ----


def curate(
    rows: datasets.Dataset, measures: Measures, filters: CurationFilters
) -> tuple[datasets.Dataset, list[FilterResult]]:
    """
    Keeps the rows that pass every filter, in their order.

    Args:
        rows (`datasets.Dataset`): N rows.
        measures (`Mapping[str, np.ndarray]`): What the filters need of [`measure_captions`], [`measure_images`] and
            [`measure_alignment`], in one dict.
        filters ([`CurationFilters`]): The limits.

    Returns:
        The rows that are left, with two more columns, `pool_row` (int64, their number among the N) and, where it was
        measured, `alignment`; and one [`FilterResult`] for each filter in use, in the order in which they were
        applied.

    Raises:
        ValueError: if no row is left, or something that a filter needs was not measured.
    """
    needed = {"words": True, "side": filters.needs_images, "alignment": filters.needs_alignment}
    missing = [name for name, is_needed in needed.items() if is_needed and name not in measures]
    if missing:
        raise ValueError(f"the filters need {', '.join(missing)}, which measures does not have; measure it first.")

    keep = measures["readable_caption"].copy()
    if "readable_image" in measures:
        keep &= measures["readable_image"]
    if "alignment" in measures:
        keep &= ~np.isnan(measures["alignment"])
    results = [FilterResult("readable", None, int(keep.sum()))]

    def apply(name: str, passed: np.ndarray) -> None:
        keep[:] &= passed
        results.append(FilterResult(name, getattr(filters, name), int(keep.sum())))

    for name, value in _LIMITS.items():
        limit = getattr(filters, name)
        if limit is not None:
            apply(name, measures[value] <= limit if name.startswith("max_") else measures[value] >= limit)
    if filters.top_alignment is not None:
        apply("top_alignment", _largest(measures["alignment"], keep, filters.top_alignment))
    if filters.duplicate_distance is not None:
        left = np.flatnonzero(keep)
        priority = measures["alignment"][left] if "alignment" in measures else None
        first = first_of_near_duplicates(measures["hash"][left], filters.duplicate_distance, priority)
        passed = np.zeros_like(keep)
        passed[left[first]] = True
        apply("duplicate_distance", passed)

    left = np.flatnonzero(keep)
    if not len(left):
        counts = ", ".join(f"{result.name}: {result.rows_left:,}" for result in results)
        raise ValueError(f"no row is left of {len(rows):,} (rows after each filter: {counts}); loosen the filters.")
    columns = {"pool_row": left.astype(np.int64)}
    if "alignment" in measures:
        columns["alignment"] = measures["alignment"][left]
    curated = rows.select(left)
    for name, values in columns.items():
        curated = curated.remove_columns([name]) if name in curated.column_names else curated
        curated = curated.add_column(name, values)
    return curated, results


# Filter -> value that it looks at, in the order in which they are applied.
_LIMITS = {
    "min_words": "words",
    "min_letters": "letters",
    "max_repeats": "repeats",
    "min_side": "side",
    "min_contrast": "contrast",
    "min_entropy": "entropy",
    "min_alignment": "alignment",
}


def _largest(values: np.ndarray, among: np.ndarray, share: float) -> np.ndarray:
    """The `share` of the rows `among` with the largest values, at least one; of equal values the earlier."""
    rows = np.flatnonzero(among)
    order = rows[np.argsort(-values[rows], kind="stable")]
    largest = np.zeros_like(among)
    largest[order[: max(1, round(share * len(rows)))]] = True
    return largest


def caption_column_of(rows: datasets.Dataset, caption_column: str | None = None) -> str:
    """The column of the captions, given or found; `ValueError` if it is not there."""
    candidates = CAPTION_COLUMNS if caption_column is None else (caption_column,)
    found = next((name for name in candidates if name in rows.column_names), None)
    if found is None:
        raise ValueError(
            f"the data have none of the columns {', '.join(candidates)} (there are: {', '.join(rows.column_names)}); "
            "name the column of the captions with caption_column."
        )
    return found


def _first_caption(value: Any) -> str:
    """The first caption that is not empty, without the spaces around it; empty if there is none."""
    try:
        return usable_captions(value)[0].strip()
    except BrokenCaption:
        return ""


__all__ = [
    "CurationFilters",
    "FilterResult",
    "caption_column_of",
    "curate",
    "join",
    "measure_alignment",
    "measure_captions",
    "measure_images",
]
