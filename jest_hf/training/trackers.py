# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The metrics of a run in groups, for trackers such as TensorBoard and W&B.

The trackers of transformers put every metric of training into one group, `train/`. Here the Trainer's own stay there,
and those of this package get groups of their own: `loss/`, `selection/`, `cost/` and `time/`. The console and
`log_history` keep the names of the logs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import ProgressCallback, TrainerCallback
from transformers.integrations import integration_utils
from transformers.trainer_callback import CallbackHandler

from jest_hf.training.callbacks import JESTProgress


# Patterns of names of the logs, the first that matches counts, and the groups of the trackers.
GROUPS = (
    (r"^(?!eval_).*(_|/)seconds$", "time"),
    (r"^(selected|rejected)/", "loss"),
    (r"^(effective_sample_size|compare|selection_rate|prefilter)/|^unique_share$", "selection"),
    (r"^(examples_(seen|trained|skipped)|flops|flops_relative_to_iid)$|^exchange/", "cost"),
)
_OWN = tuple(f"{group}/" for _, group in GROUPS)


def in_groups(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same metrics, those of this package under the names of their groups. Names with a group stay.

    Example:

    ```python
    >>> from jest_hf.training.trackers import in_groups
    >>> list(in_groups({"loss": 1.0, "selected/learnability": 0.5, "flops": 1e9, "scoring_seconds": 0.1}))
    ['loss', 'loss/selected/learnability', 'cost/flops', 'time/scoring_seconds']

    ```
    """
    found = {name: next((group for pattern, group in GROUPS if re.search(pattern, name)), None) for name in logs}
    groups = {name: None if name.startswith(_OWN) else group for name, group in found.items()}
    return {name if groups[name] is None else f"{groups[name]}/{name}": value for name, value in logs.items()}


@contextmanager
def _groups_kept() -> Iterator[None]:
    """Keep the trackers of transformers from putting grouped metrics into `train/`."""
    rewrite = integration_utils.rewrite_logs

    def rewrite_others(logs: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in logs.items() if name.startswith(_OWN)}
        return {**rewrite({name: value for name, value in logs.items() if name not in own}), **own}

    integration_utils.rewrite_logs = rewrite_others
    try:
        yield
    finally:
        integration_utils.rewrite_logs = rewrite


@dataclass
class _Grouped:
    """The method `on_log` of a tracker, with metrics in groups."""

    on_log: Callable[..., Any]

    def __call__(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        with _groups_kept():
            return self.on_log(args, state, control, logs=in_groups(logs or {}), **kwargs)


def _group_trackers(handler: CallbackHandler) -> None:
    """Give each tracker of a Trainer metrics in groups, once: two Trainers may share a tracker."""
    trackers: tuple[type[TrainerCallback], ...] = tuple(integration_utils.INTEGRATION_TO_CALLBACK.values())
    for callback in handler.callbacks:
        if isinstance(callback, trackers) and not isinstance(callback.on_log, _Grouped):
            callback.on_log = _Grouped(callback.on_log)  # type: ignore[method-assign]


class TrackersCallback(TrainerCallback):
    """Groups the metrics of trackers that `add_callback` has added since the Trainer was made."""

    def __init__(self, handler: CallbackHandler) -> None:
        self.handler = handler

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _group_trackers(self.handler)


def adopt_callbacks(handler: CallbackHandler) -> None:
    """Give the progress bar of a Trainer fewer metrics, and its trackers metrics in groups."""
    if any(type(one) is ProgressCallback for one in handler.callbacks):
        handler.remove_callback(ProgressCallback)
        handler.add_callback(JESTProgress)
    _group_trackers(handler)
    handler.add_callback(TrackersCallback(handler))


__all__ = ["GROUPS", "adopt_callbacks", "in_groups"]
