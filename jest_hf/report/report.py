# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run hands to its reports after each step, and the protocol of a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from jest_hf.report.flops import StepFlops
from jest_hf.report.summary import RunSummary


@dataclass(frozen=True)
class StepRecord:
    """
    One step, over all ranks.

    Args:
        step (`int`): Number of the step, from 1.
        ids (`torch.Tensor`): Ids of the examples trained on, int64 `[b]`, on the CPU.
        ranks (`torch.Tensor`): The rank that trained on each, int64 `[b]`.
        order (`torch.Tensor`): The place of each in the order of drawing, int64 `[b]`.
        seen (`int`): Rows of the super-batch.
        skipped (`int`): Rows among them that could not be read.
        flops ([`StepFlops`]): What the step cost.
        metrics (`dict`, *optional*): What was logged of the selection.
    """

    step: int
    ids: Tensor
    ranks: Tensor
    order: Tensor
    seen: int
    skipped: int
    flops: StepFlops
    metrics: Mapping[str, float] = field(default_factory=dict)


class Report(Protocol):
    """
    Something that is told of every step and writes it down, such as an exporter of selections.

    Pass reports to [`~jest_hf.JESTTrainer`] as `reports=[...]`. Their methods are called on the first process alone.
    """

    def on_step(self, record: StepRecord) -> None:
        """Take in one step, before the learner's update."""

    def on_checkpoint(self, step: int) -> None:
        """Write down what was taken in, before the checkpoint of a step is saved."""

    def finish(self, summary: RunSummary) -> None:
        """End the report, at the end of training."""


__all__ = ["Report", "StepRecord"]
