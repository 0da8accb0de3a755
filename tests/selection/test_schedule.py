# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jest_hf.selection import SelectionSchedule


def test_a_schedule_step_by_step():
    schedule = SelectionSchedule(0.8, warmup_steps=2, ramp_steps=4)
    assert [schedule.ratio(step) for step in range(1, 9)] == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert [schedule.selects(step) for step in range(1, 9)] == [False] * 2 + [True] * 6
    assert [schedule.scored(step, 20, 4) for step in range(1, 9)] == [4, 4, 5, 7, 10, 20, 20, 20]


def test_without_ramp_the_full_ratio_follows_the_warm_up():
    schedule = SelectionSchedule(0.5, warmup_steps=3)
    assert [schedule.ratio(step) for step in range(1, 6)] == [0, 0, 0, 0.5, 0.5]


def test_by_default_every_step_is_at_the_full_ratio():
    schedule = SelectionSchedule(0.8)
    assert [schedule.ratio(step) for step in (1, 2, 1000)] == [0.8] * 3
    assert [schedule.scored(step, 23, 4) for step in (1, 2, 1000)] == [23] * 3
    assert schedule.selects(1)


@given(st.floats(0, 0.99), st.integers(0, 50), st.integers(0, 50), st.integers(1, 64))
def test_the_ratio_rises_and_what_is_scored_with_it(filter_ratio, warmup, ramp, sub_batch):
    schedule = SelectionSchedule(filter_ratio, warmup, ramp)
    super_batch = round(sub_batch / (1 - filter_ratio))
    steps = range(1, warmup + ramp + 4)
    ratios = [schedule.ratio(step) for step in steps]
    scored = [schedule.scored(step, super_batch, sub_batch) for step in steps]
    assert ratios == sorted(ratios) and scored == sorted(scored)
    assert ratios[:warmup] == [0] * warmup and ratios[-1] == schedule.ratio(warmup + max(ramp, 1)) == filter_ratio
    assert sub_batch <= scored[0] and scored[-1] == super_batch
    rises = [after - before for before, after in zip([0, *ratios[warmup:]], ratios[warmup : warmup + ramp])]  # noqa: B905
    assert rises == pytest.approx([filter_ratio / max(ramp, 1)] * ramp, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filter_ratio": 1.0}, "filter_ratio must be at least 0 and below 1, got 1.0"),
        ({"filter_ratio": -0.1}, "filter_ratio must be at least 0"),
        ({"filter_ratio": float("nan")}, "filter_ratio must be at least 0"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"ramp_steps": -2}, "ramp_steps must be at least 0, got -2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SelectionSchedule(**{"filter_ratio": 0.5, **arguments})
