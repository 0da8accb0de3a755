# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run writes down about its steps: counts, costs and times, selection rates by source, the ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from jest_hf.config import JESTConfig
from jest_hf.distributed import Ranks
from jest_hf.report.flops import StepFlops
from jest_hf.report.ledger import SelectionLedger
from jest_hf.report.report import Report, StepRecord
from jest_hf.report.sources import Sources
from jest_hf.report.statistics import RunStatistics
from jest_hf.report.summary import RunSummary
from jest_hf.selection import Pool
from jest_hf.training.costs import RunCosts
from jest_hf.training.step import SubBatch


class RunRecorder:
    """
    Hands each step to the statistics, the ledger and the reports of a run.

    Args:
        args ([`JESTConfig`]): Options of the run.
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.
        group ([`~jest_hf.distributed.Ranks`]): The processes that select together.
        statistics ([`RunStatistics`]): Counts and means.
        sources ([`Sources`], *optional*): Where each training row comes from.
        ledger ([`SelectionLedger`], *optional*): On the first process, with `args.record_selection`.
        reports (sequence of [`Report`], *optional*): Reports of the user.

    Attributes:
        costs ([`RunCosts`], *optional*): FLOPs of a step; known once the models are.
    """

    def __init__(
        self,
        args: JESTConfig,
        ranks: Ranks,
        group: Ranks,
        statistics: RunStatistics,
        sources: Sources | None = None,
        ledger: SelectionLedger | None = None,
        reports: Sequence[Report] = (),
    ) -> None:
        self.args = args
        self.ranks = ranks
        self.group = group
        self.statistics = statistics
        self.sources = sources
        self.ledger = ledger
        self.reports = reports if ranks.rank == 0 else ()
        self.costs = RunCosts(args, {}, {}, None)
        self._last_step = StepFlops()
        self._metrics: dict[str, float] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add metrics of the step being taken to the logging window."""
        self.statistics.add(metrics)
        self._metrics |= metrics

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Wall time of a part of a step, with the device's queue drained, in seconds, as a metric."""
        start = time.perf_counter()
        yield
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)
        self.add({name: time.perf_counter() - start})

    def record(self, step: int, sub_batch: SubBatch, pool: Pool) -> None:
        """Count a step, and write down which examples every rank trains on, and when they were drawn. A collective."""
        valid = pool.rows["valid"]
        n_seen = len(pool.seen_ids)
        n_scored = n_seen if pool.n_scored is None else pool.n_scored
        counted = valid.new_tensor([n_seen, pool.unreadable, n_scored], dtype=torch.int64)
        counted[1] += (~valid).sum()
        seen, skipped, n_scored = self.ranks.sum(counted).tolist()
        columns = torch.stack([sub_batch.rows["example_id"], sub_batch.order], dim=1)
        counts = self.ranks.gather_counts(len(columns), columns.device)
        ids, order = self.ranks.gather_rows(columns, counts).cpu().T
        if self.group.size > 1:
            self.add({"exchange/examples": sub_batch.moved, "exchange/bytes": sub_batch.bytes_moved})
        scored = n_scored if sub_batch.is_selected else 0
        self._last_step = self.costs.of_step(trained=len(ids), scored=scored, readable=seen - skipped)
        metrics, self._metrics = self._metrics, {}
        ranks = torch.arange(self.ranks.size).repeat_interleave(torch.tensor(counts))
        record = StepRecord(step, ids, ranks, order, seen, skipped, self._last_step, metrics)
        self.statistics.count(seen=seen, skipped=skipped, trained_ids=ids, flops=record.flops)
        if self.sources is not None:
            own = self.sources.count(pool.seen_ids).to(valid.device)
            self.statistics.count_sources(self.sources.count(ids), self.ranks.sum(own).cpu())
        if self.ledger is not None:
            self.ledger.record(step, ids, ranks, order)
        for report in self.reports:
            report.on_step(record)

    @property
    def flops_of_last_step(self) -> float:
        """FLOPs of the step just taken, over all ranks: towers, scoring, reference and selection."""
        return self._last_step.total

    @property
    def run_flops(self) -> StepFlops:
        """FLOPs of all steps so far and of caching the reference, plain convention."""
        return self.statistics.flops + StepFlops(reference=self.costs.of_cache)

    def complete(self, logs: dict[str, float]) -> None:
        """Add the means of the logging window and the cost of the run to a training log; totals to the last log."""
        if "loss" in logs:
            logs.update(self.statistics.pop() | self._cost())
        elif "train_runtime" in logs:
            logs.update(self.statistics.totals() | self._cost())

    def _cost(self) -> dict[str, float]:
        """FLOPs so far, and their ratio to IID training of as many examples: what the run has to save to pay."""
        spent = self.run_flops
        return {"flops": spent.total, "flops_relative_to_iid": spent.relative_to_iid} if spent.training else {}

    def on_checkpoint(self, step: int) -> None:
        """Write down what is still in memory: a run that is killed while it saves resumes from an older checkpoint."""
        if self.ledger is not None:
            self.ledger.flush()
        for report in self.reports:
            report.on_checkpoint(step)

    def finish(self, summary: RunSummary) -> None:
        """End the reports, at the end of training."""
        for report in self.reports:
            report.finish(summary)


__all__ = ["RunRecorder"]
