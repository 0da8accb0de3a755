# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How much is filtered at which step: nothing at first, then more and more, then the filter ratio of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SelectionSchedule:
    """The filter ratio as a function of the step, which is counted from 1.

    The first `warmup_steps` steps train on a uniform sub-batch. Over the next `ramp_steps` the filter ratio rises
    linearly, and its last is the first at the full one.

    Args:
        filter_ratio (`float`): Share of the super-batch that is not trained on, in [0, 1).
        warmup_steps (`int`, *optional*, defaults to 0): Steps without selection.
        ramp_steps (`int`, *optional*, defaults to 0): Steps over which the filter ratio rises from 0.

    Raises:
        ValueError: if one of them is out of range.
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
        """Whether step `step` scores and selects at all: no during the warm-up."""
        return step > self.warmup_steps

    def ratio(self, step: int) -> float:
        """Return the filter ratio of step `step`: 0 during the warm-up."""
        if not self.selects(step):
            return 0.0
        return self.filter_ratio * min(1.0, (step - self.warmup_steps) / max(self.ramp_steps, 1))

    def scored(self, step: int, super_batch: int, sub_batch: int) -> int:
        """Return from how many of its rows a rank selects at step `step`: those that are scored.

        Args:
            step (`int`): The step.
            super_batch (`int`): Rows that the rank has loaded; all of them at the full filter ratio.
            sub_batch (`int`): Rows that the rank trains on; no fewer are scored, and at ratio 0 just as many.
        """
        ratio = self.ratio(step)
        if ratio == self.filter_ratio:
            return super_batch
        return min(super_batch, max(sub_batch, round(sub_batch / (1.0 - ratio))))


__all__ = ["SelectionSchedule"]
