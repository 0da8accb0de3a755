# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run says once, on its first process, when it wastes what it costs: [`SlowLoading`] and [`Overtaken`].

Both read the metrics of each step, as a [`~jest_hf.report.Report`] does.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from jest_hf.config import JESTConfig
from jest_hf.report.report import StepRecord
from jest_hf.report.summary import RunSummary
from jest_hf.selection.criteria import CRITERIA
from jest_hf.training.loaders import Loaders


logger = logging.get_logger(__name__)

MOST_LOADING = 0.2  # share of a step's time
_FIRST_STEPS = 10  # workers start, files are read for the first time
_WINDOW = 20
_SCORED_WINDOW = 50


class _Advice:
    """A report that writes nothing to disk."""

    def on_checkpoint(self, step: int) -> None:
        """Nothing is kept."""

    def finish(self, summary: RunSummary) -> None:
        """Nothing is left to say."""


class SlowLoading(_Advice, TrainerCallback):
    """
    Says so, once, when loading takes more than a fifth of the time of 20 successive steps, and which two settings help
    most. The first 10 steps are not counted, nor are evaluations and checkpoints.

    Args:
        remedies (`Callable`): Returns what would help, the best first; see [`loading_remedies`].
    """

    def __init__(self, remedies: Callable[[], list[str]]) -> None:
        self.remedies = remedies
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._n_steps = 0
        self._has_spoken = False
        self._begin = self._loading = self._late = 0.0
        self._window: list[tuple[float, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start_afresh()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin = time.perf_counter()

    def on_step(self, record: StepRecord) -> None:
        """Note the seconds of loading of one step."""
        self._loading = record.metrics.get("loading_seconds", 0.0)
        self._late = record.metrics.get("late_images_seconds", 0.0)  # of the step before, within that step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._n_steps += 1
        if self._has_spoken or self._n_steps <= _FIRST_STEPS:
            return
        seconds = self._loading + time.perf_counter() - self._begin
        self._window.append((self._loading + self._late, seconds))
        if len(self._window) < _WINDOW:
            return
        loading, whole = (sum(column) / _WINDOW for column in zip(*self._window, strict=True))
        self._window = []
        if loading > MOST_LOADING * whole:
            self._has_spoken = True
            ways = " or ".join(self.remedies()[:2]) or "more cores, or a faster disk"
            logger.warning(
                f"Loading takes {loading / whole:.0%} of a step ({loading:.3g} s of {whole:.3g} s, the mean of steps "
                f"{state.global_step - _WINDOW + 1} to {state.global_step}), and training waits for it; what would "
                f"help most: {ways}."
            )


def loading_remedies(
    args: JESTConfig, collator: Any, loaders: Loaders, map_style: bool, n_cores: int | None = None
) -> list[str]:
    """
    What would make a run load faster, the best first.

    Args:
        args ([`JESTConfig`]): Options of the run.
        collator: The data collator of the run.
        loaders ([`Loaders`]): Whether it selects before decoding, and which reference is in use.
        map_style (`bool`): Whether the data are map-style, not a stream.
        n_cores (`int`, *optional*): Cores for this process and its workers. Default: those of this process, divided by
            the number of processes on this machine.

    Returns:
        `list[str]`: settings with their values.
    """
    if n_cores is None:
        n_cores = _own_cores()
    remedies = []
    n_workers = args.dataloader_num_workers
    if n_workers < n_cores - 1:
        remedies.append(f"dataloader_num_workers={n_cores - 1} (it is {n_workers})")
    source = loaders.reference()
    caches = source is not None and not source.reads_images
    if args.selects and (map_style or caches) and loaders.early is None:  # a stream needs a cache that is there
        frozen = caches or args.reference == "model"
        needed = "" if caches else "cache_reference=True, and "
        if set(args.scored_models) == {"reference"} and frozen:
            remedies.append(f"{needed}select_before_decoding=True (only what is selected is decoded)")
        elif args.uses_reference and frozen:
            remedies.append(f"{needed}prefilter_ratio=0.8 with filter_ratio=0.5 (the super-batch is smaller)")
    if args.image_cache is None and map_style:
        remedies.append("image_cache=<folder> (each image is decoded once for all epochs and runs)")
    decodes = hasattr(collator, "scaled_jpeg_decoding")
    if decodes and find_spec("simplejpeg") is None:
        remedies.append("pip install 'jest_hf[jpeg]' (JPEGs are decoded faster, to the same pixels)")
    if decodes and not collator.scaled_jpeg_decoding:
        remedies.append("scaled_jpeg_decoding=True of the collator (large JPEGs are decoded smaller)")
    return remedies


def _own_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class Overtaken(_Advice):
    """
    Says so, once, when the learner has overtaken the reference: when, over 50 steps that select by both models, the
    learner's mean loss of the selected examples is no higher than the reference's.

    The selected examples are those on which the learner is furthest behind. (The rejected ones do not tell: the
    learner's loss is below the reference's on many of them from the beginning, since a fresh learner is unsure of
    mismatched pairs, and a good reference is sure.)
    """

    def __init__(self) -> None:
        self._has_spoken = False
        self._window: deque[tuple[float, float]] = deque(maxlen=_SCORED_WINDOW)

    @staticmethod
    def concerns(args: JESTConfig) -> bool:
        """Whether a run selects by the learner's and the reference's loss."""
        weights = CRITERIA[args.settings.criterion].weights
        return args.selects and weights.get("learner", 0) > 0 > weights.get("reference", 0)

    def on_step(self, record: StepRecord) -> None:
        """Note the losses of the selected examples of one step."""
        losses = _selected_losses(record.metrics)
        if losses is None or self._has_spoken:
            return
        if record.step == 1:
            self._window.clear()
        self._window.append(losses)
        if len(self._window) < _SCORED_WINDOW:
            return
        learner, reference = (sum(column) / len(self._window) for column in zip(*self._window, strict=True))
        if learner <= reference:
            self._has_spoken = True
            logger.warning(
                f"Step {record.step}: the learner has overtaken the reference: over the last {len(self._window)} "
                f"steps the learner's mean loss of the selected examples is {learner:.4g}, and the reference's is "
                f"{reference:.4g}, so that what is selected now is often noise and no longer what can be learned. Use "
                "criterion='easy_reference', a reference that was trained longer, or an earlier stop."
            )


def _selected_losses(metrics: Mapping[str, float]) -> tuple[float, float] | None:
    names = ("selected/learner_loss", "selected/reference_loss")
    if not all(name in metrics for name in names):
        return None
    learner, reference = (metrics[name] for name in names)
    return learner, reference


__all__ = ["MOST_LOADING", "Overtaken", "SlowLoading", "loading_remedies"]
