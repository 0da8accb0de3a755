# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Which models score, with fakes: no model runs twice, none runs that is not needed."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from jest_hf.batch import PointwiseLosses
from jest_hf.models import View
from jest_hf.scoring import Scorer


class FakeReader:
    def __init__(self):
        self.calls = []

    def score(self, model, rows, batch_size, view=None):
        self.calls.append((model, batch_size, view))
        return PointwiseLosses(rows["loss"])


class FakeReference:
    def __init__(self):
        self.calls = 0

    def score(self, learner, rows, batch_size):
        self.calls += 1
        return PointwiseLosses(rows["loss"] + 1)


ROWS = {"loss": torch.tensor([1.0, 2.0, 3.0])}


def test_each_model_runs_once_and_only_when_it_is_asked_for():
    reader, reference = FakeReader(), FakeReference()
    scores = Scorer(reader, lambda: reference, batch_size=2, view=View.parse("image:8")).on("learner", ROWS)
    assert reader.calls == [] and reference.calls == 0
    first = scores(("reference",))
    assert (first.learner, first.reference.losses.tolist()) == (None, [2.0, 3.0, 4.0])
    both = scores(("learner", "reference"))
    assert both.learner.losses.tolist() == [1.0, 2.0, 3.0] and both.reference is first.reference
    scores(("learner", "reference"))
    assert reader.calls == [("learner", 2, View.parse("image:8"))] and reference.calls == 1


def test_a_proxy_scores_in_the_learners_place():
    reader = FakeReader()
    proxy = lambda rows, batch_size: PointwiseLosses(rows["loss"] * batch_size)  # noqa: E731
    scores = Scorer(reader, lambda: None, batch_size=3, proxy=proxy).on("learner", ROWS)(("learner",))
    assert scores.learner.losses.tolist() == [3.0, 6.0, 9.0] and reader.calls == []


def test_forwards_run_in_the_context_that_is_given():
    inside = []

    @contextmanager
    def autocast():
        inside.append(True)
        yield
        inside.append(False)

    Scorer(FakeReader(), lambda: None, batch_size=3, autocast=autocast).on("learner", ROWS)(("learner",))
    assert inside == [True, False]


def test_the_reference_in_use_is_looked_up_at_each_step():
    sources = [FakeReference(), FakeReference()]
    scorer = Scorer(FakeReader(), lambda: sources[0], batch_size=3)
    scorer.on("learner", ROWS)(("reference",))
    sources.reverse()  # as when a run caches its reference
    scorer.on("learner", ROWS)(("reference",))
    assert [source.calls for source in sources] == [1, 1]


def test_without_a_reference_the_error_says_what_to_pass():
    with pytest.raises(ValueError, match="ref_model=None: .* pass ref_model"):
        Scorer(FakeReader(), lambda: None, batch_size=3).on("learner", ROWS)(("reference",))
