# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run writes down about its steps: counts, costs and times, selection rates by source, the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from jest_hf.config import JESTConfig
from jest_hf.distributed import Ranks
from jest_hf.report.figures import Elapsed, Figure, HostCopy, Reading
from jest_hf.report.flops import StepFlops
from jest_hf.report.ledger import SelectionLedger
from jest_hf.report.part import coded
from jest_hf.report.report import Report, StepRecord
from jest_hf.report.sources import Sources
from jest_hf.report.statistics import RunStatistics
from jest_hf.report.summary import RunSummary
from jest_hf.selection import Pool
from jest_hf.training.costs import RunCosts
from jest_hf.training.ledger_rows import LedgerRows, pack, unpack
from jest_hf.training.step import SubBatch


@dataclass(frozen=True)
class _Taken:
    """
    A step that has been taken, and whose rows are on their way to the host.

    Args:
        step (`int`): Number of the step.
        columns ([`HostCopy`]): What [`~training.ledger_rows.pack`] returns, of all ranks.
        counts (list of `int`): Rows of each rank in it.
        seen, skipped, flops: As in [`~report.report.StepRecord`].
        metrics ([`Reading`]): For the reports.
        sources ([`HostCopy`], *optional*): Rows of the super-batch by source, int64 `[n_sources]`; with one rank the
            ids of these rows.
    """

    step: int
    columns: HostCopy
    counts: list[int]
    seen: int
    skipped: int
    flops: StepFlops
    metrics: Reading
    sources: HostCopy | None


class RunRecorder:
    """
    Hands each step to the statistics, the ledger and the reports of a run.

    The rows of a step are copied from a GPU while the step goes on, and handed on when the next step is recorded, or
    when they are needed before: at a log, at a checkpoint, and by [`~RunRecorder.settled`].

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
        self._metrics: dict[str, Figure] = {}
        self._taken: _Taken | None = None

    def add(self, metrics: Mapping[str, Figure]) -> None:
        """Add metrics of the step being taken to the logging window."""
        self.statistics.add(metrics)
        self._metrics |= metrics

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """
        Time of a part of a step as a metric, in seconds. On a CUDA device it begins when the work enqueued before is
        done, and ends when that of the part is done; the host does not wait.
        """
        elapsed = Elapsed(self.args.device)
        yield
        self.add({name: elapsed.stop()})

    def record(self, step: int, sub_batch: SubBatch, pool: Pool) -> None:
        """Count a step, and write down which examples every rank trains on, and when they were drawn. A collective."""
        if self._taken is not None and self._taken.step != step - 1:
            self._taken = None  # of a run that has failed: this one starts from a checkpoint before that step
        self.settle()
        n_seen, shares = len(pool.seen_ids), pool.shares
        n_skipped = pool.unreadable + shares.rows[shares.ranks.rank] - shares.readable[shares.ranks.rank]
        n_scored = n_seen if pool.n_scored is None else pool.n_scored
        columns = pack(sub_batch, pool)
        numbers = [n_seen, n_skipped, n_scored, len(sub_batch.order), len(columns)]
        of_ranks = self.ranks.gather_numbers(numbers, columns.device)
        seen, skipped, n_scored, n_trained = (sum(numbers) for numbers in list(zip(*of_ranks, strict=True))[:4])
        counts = [numbers[4] for numbers in of_ranks]
        columns = self.ranks.gather_rows(columns, counts)
        if self.group.size > 1:
            self.add({"exchange/examples": sub_batch.moved, "exchange/bytes": sub_batch.bytes_moved})
        scored = n_scored if sub_batch.is_selected else 0
        self._last_step = self.costs.of_step(trained=n_trained, scored=scored, readable=seen - skipped)
        metrics, self._metrics = self._metrics, {}
        self._taken = _Taken(
            step,
            HostCopy(columns),
            counts,
            seen,
            skipped,
            self._last_step,
            Reading(metrics if self.reports else {}),
            self._seen_by_source(pool),
        )
        if self._taken.columns.arrived:
            self.settle()

    def _seen_by_source(self, pool: Pool) -> HostCopy | None:
        if self.sources is None:
            return None
        if self.ranks.size == 1:
            return HostCopy(pool.seen_ids)
        return HostCopy(self.ranks.sum(self.sources.count(pool.seen_ids).to(pool.seen_ids.device)))

    def settle(self) -> None:
        """Hand on the step that was recorded last, if its rows were still on their way. No collective."""
        taken, self._taken = self._taken, None
        if taken is None:
            return
        rows = unpack(taken.columns.read(), taken.counts)
        trained, rejected = rows.where(rows.order >= 0), rows.where(rows.order < 0)
        ids, order, ranks = trained.ids, trained.order, trained.ranks
        self.statistics.count(seen=taken.seen, skipped=taken.skipped, trained_ids=ids, flops=taken.flops)
        if self.sources is not None and taken.sources is not None:
            seen: Tensor = taken.sources.read()
            seen_by_source = self.sources.count(seen) if self.ranks.size == 1 else seen
            self.statistics.count_sources(self.sources.count(ids), seen_by_source)
        if self.ledger is not None:
            self.ledger.record(taken.step, ids, ranks, order, **self._details(trained))
            self.ledger.record_rejected(taken.step, rejected.ids, rejected.ranks, **self._details(rejected))
        if self.reports:
            record = StepRecord(
                taken.step, ids, ranks, order, taken.seen, taken.skipped, taken.flops, taken.metrics.read()
            )
            for report in self.reports:
                report.on_step(record)

    def _details(self, rows: LedgerRows) -> dict[str, Any]:
        """What the ledger gets besides ids, ranks and places."""
        sources = None if self.sources is None else coded(self.sources.of(rows.ids), self.sources.names)
        return {**rows.details(), "sources": sources}

    def settled(self) -> RunRecorder:
        """Return this recorder, once it has handed on the step that was recorded last."""
        self.settle()
        return self

    @property
    def flops_of_last_step(self) -> float:
        """FLOPs of the step just taken, over all ranks: towers, scoring, reference and selection."""
        return self._last_step.total

    @property
    def run_flops(self) -> StepFlops:
        """FLOPs of all steps so far and of caching the reference, plain convention."""
        return self.settled().statistics.flops + StepFlops(reference=self.costs.of_cache)

    def complete(self, logs: dict[str, float]) -> None:
        """Add the means of the logging window and the cost of the run to a training log; totals to the last log."""
        if "loss" in logs:
            logs.update(self.settled().statistics.pop() | self._cost())
        elif "train_runtime" in logs:
            logs.update(self.statistics.totals() | self._cost())

    def _cost(self) -> dict[str, float]:
        """FLOPs so far, and their ratio to IID training of as many examples: what the run has to save to pay."""
        spent = self.run_flops
        return {"flops": spent.total, "flops_relative_to_iid": spent.relative_to_iid} if spent.training else {}

    def on_checkpoint(self, step: int) -> None:
        """Write down what is still in memory: a run that is killed while it saves resumes from an older checkpoint."""
        self.settle()
        if self.ledger is not None:
            self.ledger.flush()
        for report in self.reports:
            report.on_checkpoint(step)

    def finish(self, summary: RunSummary) -> None:
        """End the reports, at the end of training."""
        self.settle()
        for report in self.reports:
            report.finish(summary)


__all__ = ["RunRecorder"]
