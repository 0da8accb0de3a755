# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Costs of the runs that the example scripts compare: clocks that stop for evaluations, and shares of a baseline."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def costs():
    path = Path(__file__).parents[2] / "examples" / "costs.py"
    spec = importlib.util.spec_from_file_location("costs_of_examples", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Clock:
    """Wall and CPU time, moved by hand: the CPU's is half of the wall's."""

    def __init__(self) -> None:
        self.wall = 100.0

    def __call__(self) -> np.ndarray:
        return np.array([self.wall, self.wall / 2])


def a_run(costs, monkeypatch, log_history):
    """A history whose clock stands in place of the machine's, and the arguments of its callbacks."""
    clock = Clock()
    monkeypatch.setattr(costs, "_clocks", clock)
    state = SimpleNamespace(log_history=log_history)
    statistics = SimpleNamespace(trained=8, seen=40)
    trainer = SimpleNamespace(state=state, statistics=statistics, run_flops=SimpleNamespace(total=5e9))
    history = costs.History(lambda metrics: metrics["eval_R@5"])
    history.start(trainer)
    return history, clock, state


def step(history, clock, state, seconds, evaluation=None):
    clock.wall += seconds
    history.on_step_end(None, state, SimpleNamespace(should_evaluate=evaluation is not None))
    if evaluation is not None:
        clock.wall += evaluation
        state.log_history.append({})
        history.on_evaluate(None, state, None, {"eval_loss": 1.0, "eval_R@5": 0.25})


def test_seconds_count_from_the_start_and_leave_evaluations_out(costs, monkeypatch):
    history, clock, state = a_run(costs, monkeypatch, [])
    clock.wall += 10  # the reference's pass over the data, before the first step
    history.on_train_begin(None, state, None)
    step(history, clock, state, 3)
    step(history, clock, state, 4, evaluation=50)
    step(history, clock, state, 5, evaluation=60)
    assert [cost["seconds"] for cost in history.costs] == [17, 22]
    assert [cost["cpu_seconds"] for cost in history.costs] == [8.5, 11]
    assert history.points[0] == (8, 40, 5e9, 0.25, 17)
    # An evaluation after the last step, whose time the Trainer's end of training already stopped.
    clock.wall += 2
    history.on_train_end(None, state, None)
    clock.wall += 70
    state.log_history.append({})
    history.on_evaluate(None, state, None, {"eval_loss": 1.0, "eval_R@5": 0.5})
    assert history.costs[-1]["seconds"] == 24


def test_a_resumed_run_goes_on_with_the_seconds_of_its_last_evaluation(costs, monkeypatch):
    earlier = [{"loss": 1.0}, {"point": [4, 20, 1e9, 0.1, 30.0], "cpu_seconds": 20.0}, {"loss": 0.5}]
    history, clock, state = a_run(costs, monkeypatch, earlier)
    history.on_train_begin(None, state, None)
    step(history, clock, state, 6, evaluation=1)
    assert [(cost["seconds"], cost["cpu_seconds"]) for cost in history.costs] == [(30, 20), (36, 23)]


def test_metrics_of_another_evaluation_are_no_points(costs, monkeypatch):
    history, clock, state = a_run(costs, monkeypatch, [{}])
    history.on_evaluate(None, state, None, {"test_loss": 1.0, "test_R@5": 0.5})
    assert history.costs == []


def cost(quality, trained, flops, seconds, cpu_seconds):
    return {"quality": quality, "trained": trained, "flops": flops, "seconds": seconds, "cpu_seconds": cpu_seconds}


BASELINE = [cost(0.3, 500, 5e9, 50, 40), cost(0.2, 1000, 1e10, 100, 80)]  # its end counts, not its best
RUN = [cost(0.1, 100, 1e9, 20, 12), cost(0.25, 200, 2e9, 30, 20), cost(0.9, 300, 3e9, 40, 28)]


def test_shares_are_those_of_the_first_evaluation_as_good_as_the_baselines_end(costs):
    shares = costs.shares_of(BASELINE, RUN, None)
    assert shares == {"trained": 0.2, "flops": 0.2, "seconds": 0.3, "cpu_seconds": 0.25}
    assert costs.sentence("JEST", "IID's final R@5", shares) == (
        "JEST reached IID's final R@5 with 20% of its examples, 20% of its FLOPs and 30% of its seconds."
    )


def test_shares_with_the_training_of_the_reference(costs):
    reference = {"flops": 4e9, "seconds": 25, "cpu_seconds": 8}
    shares = costs.shares_of(BASELINE, RUN, reference)
    whole = {name: shares[f"{name}_with_reference"] for name in reference}
    assert whole == pytest.approx({"flops": 0.6, "seconds": 0.55, "cpu_seconds": 0.35})
    assert costs.sentence("JEST", "it", shares).endswith(
        "With the training of the reference: 60% of its FLOPs and 55% of its seconds."
    )


def test_a_run_that_was_never_as_good(costs):
    assert costs.shares_of(BASELINE, RUN[:1], None) is None
    assert costs.sentence("JEST", "IID's final R@5", None) == "JEST did not reach IID's final R@5."
