# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the runs of `comparison.py` cost: a history of quality, examples, FLOPs and seconds; shares of a baseline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import TrainerCallback

from jest_hf import JESTTrainer
from jest_hf.report import QualityPoint


class History(TrainerCallback):
    """Records quality and cost at each evaluation in the Trainer's log, which a resumed run keeps. Seconds count from
    `start` on, without evaluations: wall time, and CPU time of this process (all threads, without loader workers).
    """

    def __init__(self, quality: Callable[[dict[str, float]], float]) -> None:
        self.quality = quality

    def start(self, trainer: JESTTrainer) -> None:
        """Start both clocks, before `trainer.train()`."""
        self.trainer, self.spent = trainer, np.zeros(2)
        self._since: np.ndarray | None = _clocks()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        earlier = [entry for entry in state.log_history if "point" in entry]
        if earlier:
            self.spent += [earlier[-1]["point"][-1], earlier[-1]["cpu_seconds"]]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_evaluate:
            self._pause()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pause()

    def _pause(self) -> None:
        if self._since is not None:
            self.spent += _clocks() - self._since
            self._since = None

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        if "eval_loss" in metrics:
            self._pause()
            counts, flops = self.trainer.statistics, self.trainer.run_flops.total
            wall, cpu = self.spent.tolist()
            state.log_history[-1]["point"] = [counts.trained, counts.seen, flops, self.quality(metrics), wall]
            state.log_history[-1]["cpu_seconds"] = cpu
        self._since = _clocks()

    @property
    def costs(self) -> list[dict[str, float]]:
        """The point of each evaluation and the CPU seconds until then, also of those before the run was resumed."""
        logged = [entry for entry in self.trainer.state.log_history if "point" in entry]
        return [QualityPoint(*entry["point"])._asdict() | {"cpu_seconds": entry["cpu_seconds"]} for entry in logged]

    @property
    def points(self) -> list[QualityPoint]:
        """One point for each evaluation."""
        names = QualityPoint._fields
        return [QualityPoint(*(cost[name] for name in names)) for cost in self.costs]


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def shares_of(
    baseline: list[dict[str, float]], costs: list[dict[str, float]], reference: dict[str, float] | None
) -> dict[str, float] | None:
    """Return what a run had spent when it was first as good as the baseline at its end, as shares of what the baseline
    spent; `None` if the run never was. With the costs of training the reference, the shares with these too.
    """
    end = baseline[-1]
    reached = next((one for one in costs if one["quality"] >= end["quality"]), None)
    if reached is None:
        return None
    spent = {name: reached[name] / end[name] for name in ("trained", "flops", "seconds", "cpu_seconds")}
    before = reference or {}
    return spent | {f"{name}_with_reference": (reached[name] + before[name]) / end[name] for name in before}


def sentence(name: str, aim: str, shares: dict[str, float] | None) -> str:
    """Return what is printed of `shares`."""
    if shares is None:
        return f"{name} did not reach {aim}."
    text = (
        f"{name} reached {aim} with {shares['trained']:.0%} of its examples, {shares['flops']:.0%} of its FLOPs and "
        f"{shares['seconds']:.0%} of its seconds."
    )
    if "flops_with_reference" not in shares:
        return text
    flops, seconds = (shares[f"{cost}_with_reference"] for cost in ("flops", "seconds"))
    return f"{text} With the training of the reference: {flops:.0%} of its FLOPs and {seconds:.0%} of its seconds."
