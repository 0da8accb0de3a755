# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The filter ratio at each step: 0 in the warm-up, rising in the ramp, then the filter ratio of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SelectionSchedule:
    """The filter ratio as a function of the step; the first step is 1.

    The first `warmup_steps` steps train on a uniform sub-batch. Over the next `ramp_steps` steps the filter ratio
    rises linearly; the last of these steps is the first with the full filter ratio.

    Args:
        filter_ratio (`float`): Share of the super-batch that is not trained on, in [0, 1).
        warmup_steps (`int`, *optional*, defaults to 0): Steps without selection.
        ramp_steps (`int`, *optional*, defaults to 0): Steps over which the filter ratio rises from 0.

    Raises:
        ValueError: if one of them is out of range.

    Example:

    ```python
    >>> from jest_hf.selection import SelectionSchedule
    >>> schedule = SelectionSchedule(filter_ratio=0.8, warmup_steps=2, ramp_steps=2)
    >>> [schedule.ratio(step) for step in (1, 2, 3, 4, 5)]
    [0.0, 0.0, 0.4, 0.8, 0.8]
    >>> [schedule.scored(step, super_batch=1000, sub_batch=200) for step in (1, 3, 5)]
    [200, 333, 1000]

    ```
    """

    filter_ratio: float
    warmup_steps: int = 0
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.filter_ratio) and 0 <= self.filter_ratio < 1):
            raise ValueError(f"filter_ratio must be at least 0 and below 1, got {self.filter_ratio}.")
        for name in ("warmup_steps", "ramp_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")

    def selects(self, step: int) -> bool:
        """Return whether step `step` selects: `False` during the warm-up, `True` after it."""
        return step > self.warmup_steps

    def ratio(self, step: int) -> float:
        """Return the filter ratio of step `step`: 0 during the warm-up."""
        if not self.selects(step):
            return 0.0
        return self.filter_ratio * min(1.0, (step - self.warmup_steps) / max(self.ramp_steps, 1))

    def scored(self, step: int, super_batch: int, sub_batch: int) -> int:
        """Return how many of its rows a rank scores, and selects from, at step `step`.

        Args:
            step (`int`): The step.
            super_batch (`int`): Rows that the rank has loaded. At the full filter ratio all of them are scored.
            sub_batch (`int`): Rows that the rank trains on. At filter ratio 0 this is the number scored.
        """
        ratio = self.ratio(step)
        if ratio == self.filter_ratio:
            return super_batch
        return min(super_batch, max(sub_batch, round(sub_batch / (1.0 - ratio))))


__all__ = ["SelectionSchedule"]
