# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Filters that make a small curated data set from a large noisy one, for instance to train a reference on (JEST++).

Curation has two steps. First, the functions of [`~jest_hf.curation.measure`] measure the rows of a `datasets.Dataset`.
Then [`curate`] keeps the rows whose values lie within the limits of a [`CurationFilters`], and returns the number of
rows left after each filter. Other limits need no new measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import datasets
import numpy as np

from jest_hf.curation.measure import Measures
from jest_hf.curation.near_duplicates import HASH_BITS, first_of_near_duplicates


@dataclass(frozen=True)
class CurationFilters:
    """Limits that a row must keep to stay; `None` switches a filter off.

    Args:
        min_words (`int`, *optional*, defaults to `1`): Fewest words of the caption.
        min_letters (`float`, *optional*): Smallest share of letters among the characters of the caption, without
            spaces, in [0, 1]. File names and numbers have few letters.
        max_repeats (`int`, *optional*): Most rows with the same caption, up to case and numbers: "image 12" and
            "Image 7" count as the same.
        min_side (`int`, *optional*): Fewest pixels of the shorter side of the image.
        min_contrast (`float`, *optional*): Smallest standard deviation of the luminance, in [0, 127.5].
        min_entropy (`float`, *optional*): Smallest entropy of the luminance in bits, in [0, 8]. A blank image has 0.
        min_alignment (`float`, *optional*): Smallest cosine of the embeddings of image and caption, in [-1, 1]. A
            suitable value depends on the model; `top_alignment` does not.
        top_alignment (`float`, *optional*): Share, in (0, 1], of the rows left by the filters above; those with the
            largest cosine are kept.
        duplicate_distance (`int`, *optional*): Images whose perceptual hashes differ in at most this many of 192 bits
            are near duplicates, of which the one with the largest cosine is kept (without a cosine, the first).

    Raises:
        ValueError: For a limit outside of its range.

    Example:

    ```python
    >>> from jest_hf.curation import CurationFilters
    >>> filters = CurationFilters(min_words=2, top_alignment=0.3)
    >>> filters.needs_alignment, filters.needs_images
    (True, False)

    ```
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
                raise ValueError(f"{name}={value!r} must lie in [{low}, {high}]; leave {name} out for no such filter.")
        if self.top_alignment == 0:
            raise ValueError("top_alignment=0 would keep no row; pass the share of rows to keep, such as 0.3.")

    @property
    def needs_images(self) -> bool:
        """Whether a filter needs [`~jest_hf.curation.measure.measure_images`]."""
        return any(
            value is not None
            for value in (self.min_side, self.min_contrast, self.min_entropy, self.duplicate_distance)
        )

    @property
    def needs_alignment(self) -> bool:
        """Whether a filter needs [`~jest_hf.curation.measure.measure_alignment`]."""
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
    """Result of one filter.

    Args:
        name (`str`): The filter: `"readable"` or an option of [`CurationFilters`].
        limit (`float`, *optional*): The limit; `None` for `"readable"`.
        rows_left (`int`): Number of rows after this filter.
    """

    name: str
    limit: float | None
    rows_left: int


def curate(
    rows: datasets.Dataset, measures: Measures, filters: CurationFilters
) -> tuple[datasets.Dataset, list[FilterResult]]:
    """Keep the rows that pass every filter, in their order. The first filter drops rows that cannot be read.

    Args:
        rows (`datasets.Dataset`): N rows.
        measures (`Mapping[str, np.ndarray]`): Results of [`~jest_hf.curation.measure.measure_captions`] and, if a
            filter needs them, of [`~jest_hf.curation.measure.measure_images`] and
            [`~jest_hf.curation.measure.measure_alignment`], in one dict.
        filters ([`CurationFilters`]): The limits.

    Returns:
        `tuple[datasets.Dataset, list[FilterResult]]`: The rows that are left, with the new columns `pool_row` (int64,
        index of the row among the N) and, if it was measured, `alignment`; and one [`FilterResult`] for each filter in
        use, in the order of application.

    Raises:
        ValueError: If no row is left, or `measures` lacks a value that a filter needs.

    Example:

    ```python
    >>> import datasets
    >>> from jest_hf.curation import CurationFilters, curate, measure_captions
    >>> rows = datasets.Dataset.from_dict({"text": ["image 12", "Image 7", "a red circle", ""]})
    >>> kept, results = curate(rows, measure_captions(rows), CurationFilters(min_words=1, max_repeats=1))
    >>> kept["text"][:], [(result.name, result.rows_left) for result in results]
    (['a red circle'], [('readable', 3), ('min_words', 3), ('max_repeats', 1)])

    ```
    """
    needed = {"words": True, "side": filters.needs_images, "alignment": filters.needs_alignment}
    missing = [name for name, is_needed in needed.items() if is_needed and name not in measures]
    if missing:
        raise ValueError(
            f"measures lacks {', '.join(missing)}, which the filters need; add the result of "
            f"{', '.join(_MEASURED_BY[name] for name in missing)}."
        )

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
        raise ValueError(
            f"no row of {len(rows):,} passes the filters (rows after each filter: {counts}); relax their limits."
        )
    columns = {"pool_row": left.astype(np.int64)}
    if "alignment" in measures:
        columns["alignment"] = measures["alignment"][left]
    curated = rows.select(left)
    for name, values in columns.items():
        curated = curated.remove_columns([name]) if name in curated.column_names else curated
        curated = curated.add_column(name, values)
    return curated, results


_MEASURED_BY = {"words": "measure_captions", "side": "measure_images", "alignment": "measure_alignment"}

# Filter -> value that it limits, in the order of application.
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
    """Mark the `share` of the rows `among` with the largest values, at least one row; of equal values the first."""
    rows = np.flatnonzero(among)
    order = rows[np.argsort(-values[rows], kind="stable")]
    largest = np.zeros_like(among)
    largest[order[: max(1, round(share * len(rows)))]] = True
    return largest


__all__ = ["CurationFilters", "FilterResult", "curate"]
