# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Reports of the user: the record of a step, and the protocol of a report (`JESTTrainer(reports=[...])`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from jest_hf.report.flops import StepFlops
from jest_hf.report.summary import RunSummary


@dataclass(frozen=True)
class StepRecord:
    """The selection of one step, over all ranks. All tensors are on the CPU, in the order of ranks.

    Args:
        step (`int`): Number of the step, from 1.
        ids (`torch.Tensor`): `example_id` of each example of the sub-batch, int64 `[b]`.
        ranks (`torch.Tensor`): Rank that trains on each example, int64 `[b]`.
        order (`torch.Tensor`): Place of each example in the order of drawing, from 0, int64 `[b]`.
        seen (`int`): Number of rows of the super-batch, without rows that the selection schedule leaves out.
        skipped (`int`): Number of rows of the super-batch that could not be read.
        flops ([`StepFlops`]): FLOPs of the step, in the plain convention.
        metrics (`dict`, *optional*): Metrics and times of loading, scoring and selection on the first rank, by the
            names of the logs, such as `"selected/learnability"` or `"scoring_seconds"`. A log has means of these.
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
    """Protocol of an object that records each step of a run, such as an exporter of selections.

    Pass reports to [`~jest_hf.JESTTrainer`] as `reports=[...]`. Their methods are called on the first rank only. A
    resumed run repeats the steps after its checkpoint, so `on_step` may get a step twice: keep the later record.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.report import StepFlops, StepRecord
    >>> class Counts:
    ...     def __init__(self):
    ...         self.n_selected = {}
    ...
    ...     def on_step(self, record):
    ...         self.n_selected[record.step] = len(record.ids)
    ...
    ...     def on_checkpoint(self, step):
    ...         pass
    ...
    ...     def finish(self, summary):
    ...         print(self.n_selected)
    >>> counts = Counts()  # JESTTrainer(..., reports=[counts])
    >>> one = torch.tensor([7]), torch.tensor([0]), torch.tensor([0])  # example 7, on rank 0, drawn first
    >>> counts.on_step(StepRecord(1, *one, seen=5, skipped=0, flops=StepFlops()))
    >>> counts.finish(None)
    {1: 1}

    ```
    """

    def on_step(self, record: StepRecord) -> None:
        """Record one step, after the selection and before the learner's update; on a CUDA device up to one step later,
        but before the next log and the next checkpoint."""

    def on_checkpoint(self, step: int) -> None:
        """Write all records so far to disk, before the checkpoint of `step` is saved."""

    def finish(self, summary: RunSummary) -> None:
        """End the report, at the end of training. `summary` holds the facts of the model card."""


__all__ = ["Report", "StepRecord"]
