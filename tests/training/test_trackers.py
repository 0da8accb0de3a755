# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Trackers get the metrics of a run in groups; the console and `log_history` have the names of the logs."""

from __future__ import annotations

import datasets
import pytest
from transformers.integrations import integration_utils

from jest_hf.training.callbacks import HIDDEN
from jest_hf.training.trackers import in_groups
from tests.trainers import make_trainer, random_rows


class Written:
    """In place of a writer of TensorBoard."""

    def __init__(self):
        self.scalars = {}

    def add_scalar(self, name, value, step):
        self.scalars.setdefault(name, []).append((step, value))

    def add_text(self, *args):
        pass

    flush = close = add_text


@pytest.fixture
def tensorboard(monkeypatch):
    """The Trainer's own callback for TensorBoard, which is not installed."""

    written = Written()

    def make(self, tb_writer=None):
        self._SummaryWriter, self.tb_writer, self.logging_dir = None, written, None

    monkeypatch.setattr(integration_utils.TensorBoardCallback, "__init__", make)
    return written


def test_metrics_come_in_groups(tmp_path, tensorboard):
    rows = datasets.Dataset.from_list([row | {"source": str(n % 2)} for n, row in enumerate(random_rows(64))])
    trainer = make_trainer(
        tmp_path,
        rows=rows,
        report_to=["tensorboard"],
        source_column="source",
        compare_selectors=["uniform"],
        eval_strategy="steps",
        eval_steps=1,
        max_steps=1,
        options={"eval_dataset": rows},
    )
    rewrite = integration_utils.rewrite_logs
    trainer.train()
    assert integration_utils.rewrite_logs is rewrite
    names = set(tensorboard.scalars)
    for name in (
        *("train/loss", "train/learning_rate", "train/train_runtime", "eval/R@1", "eval/examples_skipped"),
        *("loss/selected/learner_loss", "loss/rejected/learnability"),
        *("selection/effective_sample_size/chunk_01", "selection/selection_rate/0", "selection/unique_share"),
        *("selection/compare/uniform/overlap", "cost/flops", "cost/flops_relative_to_iid", "cost/examples_seen"),
        *("time/scoring_seconds", "time/loading_seconds", "time/elapsed_seconds", "time/selection_seconds"),
    ):
        assert name in names, name
    # What is left in the group of the Trainer is the Trainer's.
    assert {name for name in names if name.startswith("train/")} == {
        *("train/loss", "train/grad_norm", "train/learning_rate", "train/epoch", "train/train_runtime"),
        *("train/train_samples_per_second", "train/train_steps_per_second", "train/train_loss", "train/total_flos"),
    }
    first = trainer.state.log_history[0]
    assert tensorboard.scalars["loss/selected/learnability"] == [(1, first["selected/learnability"])]
    assert "scoring_seconds" in first and not any(name.startswith(("time/", "cost/", "train/")) for name in first)


def test_the_names_of_every_log_have_a_group():
    late = ("prefilter/seconds", "prefilter/effective_sample_size", "exchange/bytes", "late_images_seconds")
    assert list(in_groups(dict.fromkeys(late, 0.0))) == [
        *("time/prefilter/seconds", "selection/prefilter/effective_sample_size", "cost/exchange/bytes"),
        "time/late_images_seconds",
    ]
    assert list(in_groups({"eval_scoring_seconds": 1.0, "grad_norm": 1.0})) == ["eval_scoring_seconds", "grad_norm"]
    grouped = in_groups({"scoring_seconds": 1.0, "selected/learnability": 1.0, "flops": 1.0})
    assert in_groups(grouped) == grouped


def test_a_tracker_that_two_trainers_share_and_that_is_added_later(tmp_path, tensorboard):
    tracker = integration_utils.TensorBoardCallback()
    methods = []
    for number, trainer in enumerate([make_trainer(tmp_path / name, max_steps=1) for name in "ab"]):
        tracker.tb_writer = tensorboard  # which the end of training closes
        trainer.add_callback(tracker)
        trainer.train()
        names = set(tensorboard.scalars)
        assert {"train/loss", "loss/selected/learner_loss", "cost/flops", "time/scoring_seconds"} <= names
        assert not [name for name in names if "time/time/" in name or name.startswith("train/selected")]
        assert len(tensorboard.scalars["train/loss"]) == number + 1
        methods.append(tracker.on_log)
    assert methods[0] is methods[1]  # not wrapped a second time


def test_the_console_has_the_seconds_of_loading_and_scoring():
    shown = ("loading_seconds", "scoring_seconds", "loss", "selected/learnability", "flops_relative_to_iid")
    hidden = ("selection_seconds", "elapsed_seconds", "late_images_seconds", "flops", "effective_sample_size/chunk_01")
    assert not [name for name in shown if HIDDEN.search(name)]
    assert not [name for name in hidden if not HIDDEN.search(name)]
