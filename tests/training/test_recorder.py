# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What is written down of a step, without a Trainer."""

from __future__ import annotations

import pytest
import torch

from jest_hf import JESTConfig
from jest_hf.distributed import Ranks, Shares
from jest_hf.report import RunStatistics, SelectionLedger, read_selections
from jest_hf.report.sources import Sources
from jest_hf.selection import Pool
from jest_hf.training.costs import RunCosts
from jest_hf.training.recorder import RunRecorder
from jest_hf.training.step import SubBatch


class Kept:
    """A report that keeps what it is called with."""

    def __init__(self):
        self.records, self.checkpoints = [], []

    def on_step(self, record):
        self.records.append(record)

    def on_checkpoint(self, step):
        self.checkpoints.append(step)

    def finish(self, summary):
        self.summary = summary


def step_of(ids, selected):
    """A pool of these rows, the last of which cannot be read, and the sub-batch of some."""
    valid = torch.ones(len(ids), dtype=torch.bool)
    valid[-1] = False
    rows = {"example_id": torch.tensor(ids), "valid": valid}
    pool = Pool(rows, torch.arange(len(ids)), Shares.of(Ranks(), valid), size=len(selected))
    sub_batch = SubBatch({"example_id": torch.tensor(selected)}, torch.arange(len(selected)), 0, 0, True)
    return sub_batch, pool


@pytest.fixture
def recorder(tmp_path):
    args = JESTConfig(output_dir=tmp_path, per_device_train_batch_size=2, filter_ratio=0.5, use_cpu=True, report_to=[])
    sources = Sources(["clean", "noise"], torch.tensor([0, 1] * 5))
    one = RunRecorder(
        args,
        Ranks(),
        Ranks(),
        RunStatistics(10, {}, sources.names),
        sources,
        SelectionLedger(tmp_path / "selections.parquet"),
        [Kept()],
    )
    one.costs = RunCosts(args, {"learner": 10.0, "reference": 4.0}, {"learner": 3, "reference": 5}, 10)
    return one


def test_a_step_reaches_statistics_ledger_sources_and_reports(recorder, tmp_path):
    recorder.add({"effective_sample_size/chunk_01": 3.0})
    recorder.record(1, *step_of([4, 5, 6, 7], [6, 4]))
    recorder.record(2, *step_of([0, 1, 2, 3], [1, 0]))
    assert (recorder.statistics.seen, recorder.statistics.trained, recorder.statistics.skipped) == (8, 4, 2)
    assert recorder.statistics.sources == {"clean": (3, 4), "noise": (1, 4)}
    recorder.on_checkpoint(2)
    ledger = read_selections(tmp_path / "selections.parquet").to_pydict()
    assert (ledger["step"], ledger["order"], ledger["example_id"]) == ([1, 1, 2, 2], [0, 1, 0, 1], [6, 4, 1, 0])
    report = recorder.reports[0]
    assert [record.ids.tolist() for record in report.records] == [[6, 4], [1, 0]] and report.checkpoints == [2]
    # The metrics of a step are not those of the next.
    assert [dict(record.metrics) for record in report.records] == [{"effective_sample_size/chunk_01": 3.0}, {}]
    first = report.records[0]
    assert (first.step, first.seen, first.skipped) == (1, 4, 1)


def test_the_flops_of_a_step_are_those_of_what_it_did(recorder):
    sub_batch, pool = step_of([4, 5, 6, 7], [6, 4])
    recorder.record(1, sub_batch, pool)
    selected = recorder.reports[0].records[0].flops
    assert (selected.training, selected.scoring, selected.reference) == (3 * 10 * 2, 10 * 4, 4 * 4)
    assert selected.selection == 4 * 4 * 2 * (3 + 5)
    assert recorder.flops_of_last_step == selected.total
    uniform = SubBatch(sub_batch.rows, sub_batch.order, 0, 0, is_selected=False)
    recorder.record(2, uniform, pool)
    assert recorder.flops_of_last_step == 3 * 10 * 2
    assert recorder.run_flops.total == selected.total + 3 * 10 * 2


def test_the_first_log_has_means_and_the_last_has_totals(recorder):
    recorder.add({"selected/learner_loss": 1.0})
    recorder.add({"selected/learner_loss": 3.0})
    recorder.record(1, *step_of([4, 5, 6, 7], [6, 4]))
    logs = {"loss": 0.5}
    recorder.complete(logs)
    assert logs["selected/learner_loss"] == 2.0 and logs["examples_trained"] == 2
    again = {"loss": 0.5}
    recorder.complete(again)
    assert "selected/learner_loss" not in again
    end = {"train_runtime": 1.0}
    recorder.complete(end)
    assert end["flops_relative_to_iid"] == pytest.approx(recorder.run_flops.relative_to_iid)
    other = {"eval_loss": 1.0}
    recorder.complete(other)
    assert other == {"eval_loss": 1.0}


def test_only_the_first_rank_has_reports(tmp_path):
    second = Ranks()
    second.rank, second.size = 1, 2
    args = JESTConfig(output_dir=tmp_path, use_cpu=True, report_to=[])
    assert list(RunRecorder(args, second, second, RunStatistics(1, {}), reports=[Kept()]).reports) == []
