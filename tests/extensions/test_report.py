# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A report from outside the package: a CSV file of the examples that each step trained on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from jest_hf.report import RunSummary, StepRecord, read_selections
from tests.distributed.processes import run
from tests.extensions.runs import ROWS, pair_trainer


class CsvReport:
    """Write `step,rank,example_id` for each example, and at the end a few facts of the run beside it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        lines = self.path.read_text().splitlines()[1:] if self.path.exists() else []
        self.rows = [tuple(map(int, line.split(","))) for line in lines]

    def on_step(self, record: StepRecord) -> None:
        # A run that resumes takes the steps after its checkpoint again, and a new run begins with step 1.
        self.rows = [row for row in self.rows if row[0] < record.step]
        for rank, example in zip(record.ranks.tolist(), record.ids.tolist(), strict=True):
            self.rows.append((record.step, rank, example))

    def on_checkpoint(self, step: int) -> None:
        self.write()

    def finish(self, summary: RunSummary) -> None:
        self.write()
        facts = {"model": summary.architecture, "criterion": summary.criterion, "steps": summary.steps}
        self.path.with_suffix(".json").write_text(json.dumps(facts))

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["step,rank,example_id", *(",".join(map(str, row)) for row in self.rows)]
        self.path.write_text("\n".join(lines) + "\n")


class Spy(CsvReport):
    """Keeps what it is called with, and which checkpoints there were then."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.calls: list[tuple] = []
        self.records: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        super().on_step(record)
        self.calls.append(("step", record.step))
        self.records.append(record)

    def on_checkpoint(self, step: int) -> None:
        super().on_checkpoint(step)
        self.calls.append(("checkpoint", step, sorted(path.name for path in self.path.parent.glob("checkpoint-*"))))

    def finish(self, summary: RunSummary) -> None:
        super().finish(summary)
        self.calls.append(("finish", summary))


def ledger_rows(trainer) -> list[tuple[int, int, int]]:
    columns = read_selections(Path(trainer.args.output_dir) / "selections.parquet").to_pydict()
    return list(zip(columns["step"], columns["rank"], columns["example_id"], strict=True))


def written(path: Path) -> list[tuple[int, ...]]:
    with open(path) as file:
        return [tuple(map(int, row)) for row in list(csv.reader(file))[1:]]


def test_it_gets_every_step_and_equals_the_ledger(tmp_path):
    report = Spy(tmp_path / "selected.csv")
    settings = {"record_selection": True, "save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    trainer = pair_trainer(tmp_path, options={"reports": [report]}, **settings)
    trainer.train()
    *calls, (last, summary) = report.calls
    assert calls == [
        ("step", 1),
        ("step", 2),
        ("checkpoint", 2, []),  # before the checkpoint is there
        ("step", 3),
        ("step", 4),
        ("checkpoint", 4, ["checkpoint-2"]),
        ("step", 5),
        ("checkpoint", 5, ["checkpoint-2", "checkpoint-4"]),  # the Trainer saves at the end of a run too
    ]
    assert last == "finish" and isinstance(summary, RunSummary)
    assert report.rows == ledger_rows(trainer) == written(report.path) and len(report.rows) == 5 * 8
    facts = {"model": "SiglipModel", "criterion": "learnability", "steps": 5}
    assert json.loads((tmp_path / "selected.json").read_text()) == facts


def test_a_record_has_what_the_step_cost_and_what_was_logged_of_it(tmp_path):
    report = Spy(tmp_path / "selected.csv")
    trainer = pair_trainer(tmp_path, options={"reports": [report]}, max_steps=2)
    trainer.train()
    for record, log in zip(report.records, trainer.state.log_history, strict=False):
        assert record.seen == len(ROWS) and record.skipped == 0
        assert record.order.tolist() == list(range(8))
        assert record.flops == trainer.step_flops and record.flops.scoring > 0
        for name in ("selected/learnability", "rejected/reference_loss", "effective_sample_size/chunk_04"):
            assert record.metrics[name] == pytest.approx(log[name])
    assert sum(record.flops.total for record in report.records) == trainer.run_flops.total


def test_the_summary_is_that_of_the_run(tmp_path):
    report = Spy(tmp_path / "selected.csv")
    trainer = pair_trainer(tmp_path, options={"reports": [report]}, selection="top_k", criterion="easy_reference")
    trainer.train()
    ((_, summary),) = [call for call in report.calls if call[0] == "finish"]
    assert (summary.selection, summary.criterion, summary.loss) == ("top_k", "easy_reference", "sigmoid")
    assert (summary.steps, summary.examples_trained, summary.examples_seen) == (3, 24, 96)
    assert summary.flops == trainer.run_flops and summary.wall_time > 0


def test_a_resumed_run_takes_the_steps_after_its_checkpoint_again(tmp_path):
    settings = {"record_selection": True, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    report = Spy(tmp_path / "selected.csv")
    pair_trainer(tmp_path, options={"reports": [report]}, **settings).train()
    again = Spy(tmp_path / "selected.csv")  # as in another process, which finds the file of the first
    trainer = pair_trainer(tmp_path, options={"reports": [again]}, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [call[1] for call in again.calls if call[0] == "step"] == [3, 4]
    assert written(again.path) == report.rows == ledger_rows(trainer) and len(report.rows) == 4 * 8
    fresh = Spy(tmp_path / "selected.csv")
    trainer = pair_trainer(tmp_path, options={"reports": [fresh]}, seed=1, max_steps=1)
    trainer.train()
    assert len(written(fresh.path)) == 8 != len(report.rows)


def test_several_reports_get_the_same(tmp_path):
    reports = [Spy(tmp_path / "a.csv"), Spy(tmp_path / "b.csv")]
    pair_trainer(tmp_path, options={"reports": reports}, selection="uniform", reference=None).train()
    one, other = reports
    assert one.rows == other.rows and [call[0] for call in one.calls] == ["step"] * 3 + ["finish"]
    assert [record.seen for record in one.records] == [8] * 3


def train_on_this_rank(folder: str) -> tuple[list, list]:
    report = Spy(Path(folder) / "selected.csv")
    trainer = pair_trainer(
        folder,
        options={"reports": [report]},
        per_device_train_batch_size=4,
        record_selection=True,
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    return [call[:2] for call in report.calls if call[0] != "finish"], report.rows


def test_on_two_ranks_the_first_alone_reports_for_both(tmp_path):
    (calls, rows), (none, no_rows) = run(2, train_on_this_rank, str(tmp_path))
    assert none == no_rows == []
    assert calls == [("step", 1), ("step", 2), ("checkpoint", 2), ("step", 3), ("checkpoint", 3)]
    columns = read_selections(tmp_path / "selections.parquet").to_pydict()
    assert rows == list(zip(columns["step"], columns["rank"], columns["example_id"], strict=True))
    assert {rank for _, rank, _ in rows} == {0, 1} and len(rows) == 3 * 8
    assert written(tmp_path / "selected.csv") == rows
