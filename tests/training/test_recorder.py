# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What is written down of a step, without a Trainer."""

from __future__ import annotations

import json
import types

import datasets
import pytest
import torch

from jest_hf import JESTConfig
from jest_hf.distributed import Ranks, Shares
from jest_hf.report import RunStatistics, SelectionLedger, read_selections
from jest_hf.report.figures import HostCopy
from jest_hf.report.sources import Sources
from jest_hf.selection import Pool
from jest_hf.training.costs import RunCosts
from jest_hf.training.recorder import RunRecorder
from jest_hf.training.step import SubBatch
from tests.invariant.recorded import plain
from tests.trainers import make_trainer, random_rows


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


class LateCopy(HostCopy):
    """A copy that is still on its way, as from a GPU, until somebody reads it."""

    def __init__(self, value):
        super().__init__(value)
        self.arrived = False
        self._event = types.SimpleNamespace(synchronize=lambda: None)


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr("jest_hf.training.recorder.HostCopy", LateCopy)


def test_a_step_that_is_on_its_way_is_handed_on_with_the_next(recorder, late):
    report, statistics = recorder.reports[0], recorder.statistics
    recorder.add({"selected/learnability": torch.tensor(0.25), "scoring_seconds": 0.5})
    recorder.record(1, *step_of([4, 5, 6, 7], [6, 4]))
    assert (statistics.seen, report.records) == (0, [])
    assert recorder.flops_of_last_step > 0  # the Trainer adds them up after each step
    recorder.record(2, *step_of([0, 1, 2, 3], [1, 0]))
    assert (statistics.seen, len(report.records)) == (4, 1)
    assert dict(report.records[0].metrics) == {"selected/learnability": 0.25, "scoring_seconds": 0.5}
    assert recorder.settled().statistics.sources == {"clean": (3, 4), "noise": (1, 4)}
    assert [record.ids.tolist() for record in report.records] == [[6, 4], [1, 0]]


@pytest.mark.parametrize(
    "end",
    [
        lambda recorder: recorder.on_checkpoint(1),
        lambda recorder: recorder.complete({"loss": 0.5}),
        lambda recorder: recorder.complete({"train_runtime": 1.0}),
        lambda recorder: recorder.finish(None),
        lambda recorder: recorder.run_flops,
    ],
    ids=["checkpoint", "log", "last log", "end", "FLOPs"],
)
def test_whoever_needs_a_step_gets_it(recorder, late, end):
    recorder.record(1, *step_of([4, 5, 6, 7], [6, 4]))
    end(recorder)
    assert (recorder.statistics.trained, len(recorder.reports[0].records)) == (2, 1)
    end(recorder)
    assert recorder.statistics.trained == 2


def test_the_last_step_of_a_run_that_failed_is_not_counted_in_the_next(recorder, late):
    recorder.record(7, *step_of([4, 5, 6, 7], [6, 4]))
    recorder.statistics._start_afresh()  # as a new call of `train` does
    recorder.record(1, *step_of([0, 1, 2, 3], [1, 0]))
    assert recorder.settled().statistics.trained == 2
    assert [record.step for record in recorder.reports[0].records] == [1]


def test_a_run_whose_figures_come_late_writes_the_same(tmp_path, monkeypatch):
    """Checkpoints, ledger and logs, and what a resumed run goes on with."""
    rows = datasets.Dataset.from_list([row | {"source": str(n % 3)} for n, row in enumerate(random_rows(64))])
    options = {"rows": rows, "max_steps": 5, "save_strategy": "steps", "save_steps": 2, "logging_steps": 2}
    options |= {"record_selection": True, "source_column": "source"}
    found = {}
    for name in ("at once", "late"):
        if name == "late":
            monkeypatch.setattr("jest_hf.training.recorder.HostCopy", LateCopy)
        trainer = make_trainer(tmp_path / name, **options)
        trainer.train()
        again = make_trainer(tmp_path / name, **options)
        again.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-2"))
        states = [
            json.loads((tmp_path / name / f"checkpoint-{step}/trainer_state.json").read_text()) for step in (2, 4)
        ]
        found[name] = plain([states, again.statistics.state(), read_selections(again.ledger.path).to_pydict()])
    assert found["late"] == found["at once"]


def test_only_the_first_rank_has_reports(tmp_path):
    second = Ranks()
    second.rank, second.size = 1, 2
    args = JESTConfig(output_dir=tmp_path, use_cpu=True, report_to=[])
    assert list(RunRecorder(args, second, second, RunStatistics(1, {}), reports=[Kept()]).reports) == []
