# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of a step that are still on their way from a GPU, where reading them at once would make the host wait.

The host runs ahead of a GPU, and waits for it whenever it reads a number. So a step keeps its figures as tensors and
its times as pairs of CUDA events, and they are read when they are logged.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


class Elapsed:
    """Time from now until `stop`, in seconds.

    On a CUDA device, the time between two events in its queue: the clock of a host that does not wait would show how
    long it takes to launch the work.

    Args:
        device (`torch.device`): The device whose work is timed.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = _timing_events() if device.type == "cuda" else None
        self._device = device
        self._times = [0.0, 0.0]
        self._mark(0)

    def stop(self) -> Elapsed:
        """End the time; returns itself."""
        self._mark(1)
        return self

    def seconds(self) -> float:
        """Return the time. The host waits until the device has done what was timed."""
        if self._events is None:
            return self._times[1] - self._times[0]
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1000

    def _mark(self, end: int) -> None:
        if self._events is None:
            self._times[end] = time.perf_counter()
        else:
            self._events[end].record(torch.cuda.current_stream(self._device))


def _timing_events() -> list[torch.cuda.Event]:
    return [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]


# A number, a tensor of one number, or a time.
Figure = float | Tensor | Elapsed


class HostCopy:
    """A copy of a tensor on the host. From a CUDA device it arrives later, and nobody waits for it before `read`.

    Args:
        value (`torch.Tensor`): Of any shape and dtype.

    Attributes:
        arrived (`bool`): Whether `read` returns at once.
    """

    def __init__(self, value: Tensor) -> None:
        self.arrived = not value.is_cuda
        if self.arrived:
            self._host = value.cpu()
            return
        self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self._host.copy_(value, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no annotation
        self._event.record(torch.cuda.current_stream(value.device))

    def read(self) -> Tensor:
        """Return the copy, a tensor on the CPU. The host waits until it is there."""
        if not self.arrived:
            self._event.synchronize()
            self.arrived = True
        return self._host


class Reading:
    """The figures of a step, on their way to the host.

    Args:
        figures (mapping of `str` to `float`, tensor of one number or [`Elapsed`]): By name. All tensors are on one
            device.
    """

    def __init__(self, figures: Mapping[str, Figure]) -> None:
        self._figures = dict(figures)
        tensors = [value for value in figures.values() if isinstance(value, Tensor)]
        self._copy = HostCopy(_stacked(tensors)) if tensors else None

    def read(self) -> dict[str, float]:
        """Return the figures by name, in their order. The host waits until they are there."""
        numbers = iter([] if self._copy is None else self._copy.read().tolist())
        return {name: _number(value, numbers) for name, value in self._figures.items()}


def read_figures(figures: Mapping[str, Figure]) -> dict[str, float]:
    """Return figures as numbers, by name. The host waits at most once for all tensors."""
    return Reading(figures).read()


def read_all(figures: Sequence[Figure]) -> list[float]:
    """Return figures as numbers. The host waits at most once for all tensors."""
    return list(read_figures({str(place): value for place, value in enumerate(figures)}).values())


def _stacked(tensors: list[Tensor]) -> Tensor:
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.stack([tensor.detach().reshape(()).to(dtype) for tensor in tensors])


def _number(value: Figure, numbers: Iterator[float]) -> float:
    if isinstance(value, Tensor):
        return next(numbers)
    return value.seconds() if isinstance(value, Elapsed) else value


__all__ = ["Elapsed", "Figure", "HostCopy", "Reading", "read_all", "read_figures"]
