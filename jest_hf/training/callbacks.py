# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The small callbacks of a run: epoch, ledger, progress bar, reports, and the models beside the learner."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler, ProgressCallback

from jest_hf.data.rows import EpochSampler
from jest_hf.report.ledger import SelectionLedger
from jest_hf.training.companions import Companions


class EpochCallback(TrainerCallback):
    """
    Sets the epoch of a sampler. The Trainer sets the epoch of its loader, but not every wrapper that accelerate puts
    between loader and sampler (shards of several processes, batches skipped after a resume) passes it on.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class LedgerCallback(TrainerCallback):
    """Begins a ledger at the step that training starts from, and completes it at the end."""

    def __init__(self, ledger: SelectionLedger) -> None:
        self.ledger = ledger

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ledger.begin(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ledger.flush()


HIDDEN = re.compile(
    r"^effective_sample_size|_to_(text|image)_R@|(?<!loading)(?<!scoring)_seconds$|_per_second$|eval_runtime$|"
    r"^total_flos$|^flops$"
)


class JESTProgress(ProgressCallback):
    """[`~transformers.ProgressCallback`] without the metrics that `HIDDEN` matches: a joint run logs about thirty."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        shown = {name: value for name, value in (logs or {}).items() if not HIDDEN.search(name)}
        super().on_log(args, state, control, logs=shown, **kwargs)


class CompanionsCallback(TrainerCallback):
    """Starts the models beside the learner once the number of steps is known."""

    def __init__(self, companions: Companions) -> None:
        self.companions = companions

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.companions.start(state.max_steps)


def keep_callbacks(handler: CallbackHandler, own: Sequence[TrainerCallback]) -> None:
    """
    Put the callbacks of a run back in the place of the copies that `restore_callback_states_from_checkpoint=True` has
    made: the run counts with its own, which load their state themselves.
    """
    kinds = tuple(type(one) for one in own)
    handler.callbacks = [*own, *(one for one in handler.callbacks if not isinstance(one, kinds))]


class ReportsCallback(TrainerCallback):
    """Ends the reports of a run at the end of training."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self.finish = finish

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.finish()


__all__ = [
    "CompanionsCallback",
    "EpochCallback",
    "JESTProgress",
    "LedgerCallback",
    "ReportsCallback",
    "keep_callbacks",
]
