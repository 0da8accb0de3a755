# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Figures that are read later: in their order, all at once, and times by the events of a device."""

from __future__ import annotations

import pytest
import torch

from jest_hf.report.figures import Elapsed, HostCopy, Reading, read_all, read_figures


def test_figures_come_in_their_order_whatever_they_are():
    figures = {"a": 1.5, "b": torch.tensor(0.1), "c": torch.tensor(0.1, dtype=torch.float64), "d": 3}
    found = read_figures(figures)
    assert list(found) == list("abcd")
    assert found == {"a": 1.5, "b": torch.tensor(0.1).item(), "c": 0.1, "d": 3}
    assert read_all([]) == [] and read_figures({"a": 2.0}) == {"a": 2.0}
    assert all(isinstance(value, float) for value in read_all([torch.tensor([7]), torch.tensor(2.0)]))


def test_a_reading_keeps_what_its_tensors_were():
    value = torch.tensor(1.0)
    reading = Reading({"loss": value})
    value.add_(1)
    assert reading.read() == reading.read() == {"loss": 1.0}


def test_a_copy_from_the_cpu_is_there_at_once():
    copy = HostCopy(torch.arange(3))
    assert copy.arrived and copy.read().tolist() == [0, 1, 2]


def test_times_on_the_cpu_are_those_of_a_clock(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert Elapsed(torch.device("cpu")).stop().seconds() == 2.5


def test_times_on_cuda_are_those_between_events_and_are_waited_for_when_they_are_read(monkeypatch):
    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            calls.append(f"record on {stream}")

        def synchronize(self):
            calls.append("wait")

        def elapsed_time(self, other):
            return 250.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    elapsed = Elapsed(torch.device("cuda:1")).stop()
    assert calls == ["record on the stream of cuda:1"] * 2
    assert read_all([elapsed, 1.0]) == pytest.approx([0.25, 1.0])
    assert calls[2:] == ["wait"]
