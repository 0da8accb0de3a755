# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""From super-batch to sub-batch without a Trainer: fake scores, real selection."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from jest_hf import JESTConfig
from jest_hf.batch import PointwiseLosses
from jest_hf.distributed import Ranks
from jest_hf.scoring import Scorer
from jest_hf.training.step import MOST_EMPTY, SelectionStep, compared_selectors


class Metrics:
    def __init__(self):
        self.values = {}

    def add(self, metrics):
        self.values |= metrics

    @contextmanager
    def timed(self, name):
        yield
        self.values[name] = 0.0


class Reader:
    """The loss of a row is in the row."""

    def __init__(self):
        self.rows = []

    def score(self, model, rows, batch_size, view=None):
        self.rows.append(len(rows["example_id"]))
        return PointwiseLosses(rows["loss"])


class Unreadable:
    """A reference that could not read some rows when it was cached."""

    def __init__(self, lost):
        self.lost = torch.tensor(lost)

    def readable(self, rows):
        return rows["valid"] & ~torch.isin(rows["example_id"], self.lost)


def super_batch(n=16):
    generator = torch.Generator().manual_seed(0)
    return {
        "example_id": torch.arange(100, 100 + n),
        "loss": torch.rand(n, generator=generator),
        "valid": torch.ones(n, dtype=torch.bool),
    }


def make_step(folder, reference=None, **options):
    options = {"criterion": "hard_learner", "selection": "top_k", "filter_ratio": 0.75, **options}
    args = JESTConfig(output_dir=folder, per_device_train_batch_size=4, use_cpu=True, report_to=[], **options)
    reader, metrics = Reader(), Metrics()
    step = SelectionStep(
        args,
        None,
        ranks=Ranks(),
        group=Ranks(),
        scorer=Scorer(reader, lambda: reference, batch_size=8),
        reference=lambda: reference,
        metrics=metrics,
    )
    return step, reader, metrics


def test_the_sub_batch_is_what_scores_highest(tmp_path):
    step, reader, metrics = make_step(tmp_path)
    rows = super_batch()
    sub_batch, pool = step(None, rows, 1)
    best = rows["loss"].argsort(descending=True)[:4]
    assert sub_batch.is_selected and sub_batch.rows["example_id"].tolist() == (100 + best).tolist()
    assert sub_batch.order.tolist() == [0, 1, 2, 3]
    assert torch.equal(sub_batch.selected["learner"].losses, sub_batch.rows["loss"])
    assert pool.size == 4 and pool.positions.tolist() == list(range(16)) and reader.rows == [16]
    assert {"scoring_seconds", "selection_seconds", "selected/learner_loss"} <= metrics.values.keys()


def test_rows_that_the_reference_could_not_read_are_never_selected(tmp_path):
    rows = super_batch()
    best = (100 + rows["loss"].argsort(descending=True)[:4]).tolist()
    step, _, _ = make_step(tmp_path, reference=Unreadable(best))
    sub_batch, pool = step(None, rows, 1)
    assert not set(sub_batch.rows["example_id"].tolist()) & set(best)
    assert int((~pool.rows["valid"]).sum()) == 4
    assert rows["valid"].all(), "the loader's batch was changed"


def test_the_warm_up_trains_without_scoring_and_the_ramp_scores_a_part(tmp_path):
    step, reader, _ = make_step(tmp_path, selection_warmup_steps=1, filter_ratio_ramp_steps=2)
    first, pool = step(None, super_batch(), 1)
    assert not first.is_selected and len(pool.rows["valid"]) == 4 and reader.rows == []
    second, pool = step(None, super_batch(), 2)
    assert second.is_selected and reader.rows == [len(pool.rows["valid"])] and 4 < reader.rows[0] < 16
    step(None, super_batch(), 3)
    assert reader.rows[1] == 16


def test_super_batches_without_readable_rows_train_on_nothing_and_end_the_run_in_the_end(tmp_path):
    step, _, _ = make_step(tmp_path)
    rows = super_batch()
    rows["valid"][:] = False
    for number in range(1, MOST_EMPTY):
        sub_batch, pool = step(None, rows, number)
        assert sub_batch.is_empty and sub_batch.rows.keys() == rows.keys() and pool.shares.readable == [0]
    assert not step(None, super_batch(), MOST_EMPTY)[0].is_empty  # the count begins anew
    for number in range(1, MOST_EMPTY):
        step(None, rows, number)
    with pytest.raises(ValueError, match="step 7: only 0 of the 16 rows .* 1 are needed, for the 5th step in a row"):
        step(None, rows, 7)


def test_options_that_change_during_a_run_hold_from_the_next_step(tmp_path):
    step, _, _ = make_step(tmp_path, selection="independent")
    drawn, _ = step(None, super_batch(), 1)
    step.args.selection = "top_k"  # as a hyperparameter search does it between its trials
    taken, _ = step(None, super_batch(), 1)
    assert drawn.rows["example_id"].tolist() != taken.rows["example_id"].tolist()


def test_compared_selectors_have_the_settings_of_the_run(tmp_path):
    args = JESTConfig(
        output_dir=tmp_path, compare_selectors=["joint/learnability", "uniform"], n_chunks=3, selection_gain=2.0
    )
    joint, uniform = compared_selectors(args, "softmax")
    assert (joint.n_chunks, joint.gain, joint.loss, joint.uniform_fraction) == (3, 2.0, "softmax", 0.0)
    assert str(uniform) == "uniform"
