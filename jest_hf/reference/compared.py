# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of a run are compared, one by one as they are read, with those that a reference cache was made of.

A sample of rows is compared before the first step ([`~reference.fingerprint.describe_data`]). It does not show an
image that was replaced between two rows of the sample, and of a stream it is the first row alone. The cache has a
digest of the image and of the captions of each row, so a loader's worker can compare the rows that it reads anyway.
One row that differs is a bad row: it is skipped and counted like a broken one, since one replaced image should not end
a run of days. If most rows differ, the data are not those of the cache, and the run ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.row_digest import content_digests, with_encoded
from jest_hf.evaluation.pairs import CaptionCollator
from jest_hf.reference.store import ReferenceCache


logger = logging.getLogger(__name__)

FEWEST_DIFFERENT = 16  # rows of one process that differ before their share can end the run


class DigestingCollator(CaptionCollator):
    """A [`CaptionCollator`] that reads each image file once, for the digests of the readable rows too: `digest`, int64
    `[n, 2]`."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        column = self.collator.image_column
        rows = [dict(with_encoded(row, column)) for row in rows]
        batch = super().__call__(rows)
        digests = content_digests(rows, column, self.collator.caption_column)
        return {**batch, "digest": digests[batch["readable"]]}


class ComparingCollator:
    """A collator that marks rows which are not those of the cache as broken (`valid` False).

    Args:
        collator ([`JESTDataCollator`]): Makes a super-batch of rows.
        cache ([`ReferenceCache`]): The cache, with digests.
        rows_of (`Callable`): From a super-batch to the numbers of its rows in the cache, int64 `[n]`.
        different (`torch.Tensor`): Counts the rows that differ, int64 scalar in memory that processes share.

    Raises:
        ValueError: In a call, if at least 16 rows that this process has read differ, and more than half of all.
    """

    def __init__(
        self,
        collator: JESTDataCollator,
        cache: ReferenceCache,
        rows_of: Callable[[Mapping[str, Tensor]], Tensor],
        different: Tensor,
    ) -> None:
        self.collator = collator
        self.cache = cache
        self.rows_of = rows_of
        self.different = different
        self._n_compared = self._n_different = 0
        # A collator of the user may read the files itself.
        self._reads_bytes = type(collator) is JESTDataCollator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        column = self.collator.image_column
        if self._reads_bytes:
            rows = [with_encoded(row, column) for row in rows]
        batch = self.collator(rows)
        if not len(batch["valid"]):
            return batch
        numbers = self.rows_of(batch)
        found = content_digests(rows, column, self.collator.caption_column)
        wrong = differing(found, self.cache.digests(numbers)) & batch["valid"].unsqueeze(1)
        different = wrong.any(dim=1)
        self._n_compared += int((batch["valid"] & self.cache.readable(numbers)).sum())
        if different.any():
            self._count(int(different.sum()), batch["example_id"][different], wrong[different])
        return {**batch, "valid": batch["valid"] & ~different}

    def _count(self, n_different: int, ids: Tensor, wrong: Tensor) -> None:
        said = f"example {int(ids[0])} has {described(wrong[0])} than when the reference cache was made"
        if self._n_different == 0:
            logger.warning(
                f"Skipped {said}, and so are all rows that differ from the cache in {self.cache.folder}: make a new "
                "cache with `jest-hf cache-reference` if there are many."
            )
        self._n_different += n_different
        self.different += n_different
        if self._n_different >= FEWEST_DIFFERENT and 2 * self._n_different > self._n_compared:
            raise ValueError(
                f"{self._n_different} of {self._n_compared} rows are not those that the reference cache in "
                f"{self.cache.folder} was made of ({said}); train on the data of the cache, or make a new cache with "
                "`jest-hf cache-reference`."
            )


def differing(found: Tensor, cached: Tensor) -> Tensor:
    """Return where the digests of rows differ from those in a cache (each int64 `[n, 2]`: image, captions), bool
    `[n, 2]`. A digest that is not known, 0, differs from none."""
    return (found != cached) & (found != 0) & (cached != 0)


def described(wrong: Tensor) -> str:
    """Return in words what of a row differs, from a row of [`differing`]."""
    return " and ".join(
        what for what, is_wrong in zip(("another image", "other captions"), wrong, strict=True) if is_wrong
    )


__all__ = ["ComparingCollator", "DigestingCollator", "described", "differing"]
