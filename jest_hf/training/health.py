# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that cannot be meant: losses that are no numbers, and data of which most rows cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

from jest_hf.data.reasons import mostly_broken
from jest_hf.data.rows import Rows
from jest_hf.data.stream import is_stream
from jest_hf.reference import CachedReference, ReferenceSource
from jest_hf.report import RunStatistics


logger = logging.get_logger(__name__)

MOST_BROKEN_LOSSES = 3  # steps in a row; one can be an overflow that the optimizer's scaler skips


class LossWatch:
    """Counts steps in a row whose loss is NaN or infinite; the count stays on the device until a log."""

    def __init__(self) -> None:
        self._in_a_row: Tensor | None = None

    def __call__(self, loss: Tensor) -> Tensor:
        """Count a loss, the same on all ranks, and return it."""
        before = torch.zeros_like(loss) if self._in_a_row is None else self._in_a_row
        self._in_a_row = torch.where(loss.detach().isfinite(), 0.0, before + 1)
        return loss

    def check(self, step: int) -> None:
        """
        End a run that has no loss any more.

        Raises:
            FloatingPointError: if the last `MOST_BROKEN_LOSSES` losses, or more, are NaN or infinite.
        """
        in_a_row = 0 if self._in_a_row is None else int(self._in_a_row)
        if in_a_row >= MOST_BROKEN_LOSSES:
            raise FloatingPointError(
                f"step {step}: the loss has been NaN or infinite for {in_a_row} steps, so the learner's weights are "
                "lost; go on from a checkpoint before that with a lower learning_rate, or look for NaN in the learner."
            )


class BrokenRows(TrainerCallback):
    """
    Says so at the end of a run, in one line with reasons, if more than half of the rows could not be used, and if rows
    were skipped that differ from a reference cache.

    Args:
        statistics ([`~jest_hf.report.RunStatistics`]): Counts of the run.
        collator: The data collator of the run.
        dataset: The training data. Some rows are read again, for the reasons; of a stream there are none.
        reference (`Callable`): Returns the reference in use, or `None`.
    """

    def __init__(
        self, statistics: RunStatistics, collator: Any, dataset: Any, reference: Callable[[], ReferenceSource | None]
    ) -> None:
        self.statistics, self.collator, self.dataset, self.reference = statistics, collator, dataset, reference

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        rows = None if is_stream(self.dataset) else Rows(self.dataset, self.collator.image_column)
        said = mostly_broken(self.statistics.skipped, self.statistics.seen, self.collator, rows)
        if said is not None:
            logger.error(f"Of the rows that this run has read, {said}.")
        source = self.reference()
        if isinstance(source, CachedReference) and (n_different := int(source.different)):
            logger.error(
                f"{n_different:,} rows that this process has read were skipped: their images or captions are not "
                f"those that the reference cache in {source.cache.folder} was made of. Make a new cache with `jest-hf "
                "cache-reference`."
            )


__all__ = ["BrokenRows", "LossWatch"]
