# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Statistics of a run: counts over the whole run, and means of metrics over each logging window.

[`RunStatistics`] is saved in the trainer state of a checkpoint, so that a resumed run continues the counts.
"""

from __future__ import annotations

import base64
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from jest_hf.report.figures import Figure, read_all
from jest_hf.report.flops import StepFlops


logger = logging.get_logger(__name__)

ROWS = "the number of training rows"
ELAPSED = "elapsed_seconds"
MOST_KEPT = 1000  # values of a metric, in a window that may be as long as the run (`logging_strategy="no"`)


class RunStatistics(TrainerCallback, ExportableState):
    """Counts examples over the run, and averages the metrics of steps between two logs.

    Args:
        n_examples (`int`, *optional*): Number of training rows; for each row one bit is saved, for the unique share.
            `None` for a stream, which has no unique share.
        settings (`dict`): All settings that the selection depends on. Resuming with other settings logs a warning.
            A dict is a description by kind, such as `{"weights": "1f0c..."}`: only kinds that both have are compared.
        source_names (sequence of `str`, *optional*): Sources of the data, whose selection rates are counted.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.report import RunStatistics, StepFlops
    >>> statistics = RunStatistics(n_examples=10, settings={})
    >>> statistics.count(seen=8, skipped=1, trained_ids=torch.tensor([3, 5]), flops=StepFlops(training=1.0))
    >>> statistics.totals()
    {'examples_seen': 8, 'examples_trained': 2, 'examples_skipped': 1, 'unique_share': 1.0}

    ```
    """

    def __init__(self, n_examples: int | None, settings: dict[str, Any], source_names: Sequence[str] = ()) -> None:
        self.n_examples = n_examples
        self.settings = settings
        self.source_names = source_names
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.seen = self.trained = self.skipped = 0
        self.flops = StepFlops()
        # By source: number of examples trained on, and number of examples seen.
        self.sources = dict.fromkeys(self.source_names, (0, 0))
        self._ever_trained = np.zeros(self.n_examples or 0, dtype=bool)
        self._window: dict[str, list[Figure]] = defaultdict(list)
        self._summed: dict[str, tuple[float, int]] = {}  # sum and number of earlier values of the window
        self._began = time.perf_counter()

    @property
    def unique_share(self) -> float | None:
        """Number of different examples trained on, as a share of all examples trained on; `None` for a stream."""
        if self.n_examples is None:
            return None
        return float(self._ever_trained.sum() / self.trained) if self.trained else 1.0

    def count(self, *, seen: int, skipped: int, trained_ids: Tensor, flops: StepFlops) -> None:
        """Count one step.

        Args:
            seen (`int`): Rows of the super-batch.
            skipped (`int`): Broken rows of the super-batch.
            trained_ids (`torch.Tensor`): Ids of the examples trained on, int64 `[b]`, on the CPU.
            flops ([`StepFlops`]): FLOPs of the step.
        """
        self.seen += seen
        self.skipped += skipped
        self.trained += len(trained_ids)
        self.flops += flops
        if self.n_examples is not None:
            self._ever_trained[trained_ids.numpy()] = True

    def count_sources(self, trained: Tensor, seen: Tensor) -> None:
        """Count one step by source: examples trained on and examples seen, each int64 `[n_sources]`."""
        for name, more_trained, more_seen in zip(self.source_names, trained.tolist(), seen.tolist(), strict=True):
            so_far, seen_so_far = self.sources[name]
            self.sources[name] = (so_far + more_trained, seen_so_far + more_seen)

    def add(self, metrics: Mapping[str, Figure]) -> None:
        """Add metrics of one step to the logging window: numbers, or what `pop` reads from a device."""
        for name, value in metrics.items():
            self._window[name].append(value)
        if any(len(self._window[name]) >= MOST_KEPT for name in metrics):
            self._sum()

    def _sum(self) -> None:
        """Add up the values of the window, and let go of them."""
        numbers = iter(read_all([value for values in self._window.values() for value in values]))
        for name, values in self._window.items():
            total, n = self._summed.get(name, (0.0, 0))
            self._summed[name] = total + float(np.sum([next(numbers) for _ in values])), n + len(values)
        self._window.clear()

    def pop(self) -> dict[str, float]:
        """Return the means over the logging window, the totals of the run and its seconds so far (`elapsed_seconds`,
        with those before a resume), and start a new window."""
        self._sum()
        means = {name: total / n for name, (total, n) in self._summed.items()}
        self._summed.clear()
        return {**means, **self.totals(), ELAPSED: time.perf_counter() - self._began}

    def totals(self) -> dict[str, float]:
        """Return the counts over the whole run, including the steps before a resume."""
        totals = {
            "examples_seen": self.seen,
            "examples_trained": self.trained,
            "examples_skipped": self.skipped,
            "unique_share": self.unique_share,
        }
        totals |= {f"selection_rate/{name}": m / n for name, (m, n) in self.sources.items() if n > 0}
        return {name: value for name, value in totals.items() if value is not None}

    def state(self) -> dict[str, Any]:
        """Return the state that the Trainer saves in `trainer_state.json`."""
        bits = zlib.compress(np.packbits(self._ever_trained).tobytes())
        counts = {"seen": self.seen, "trained": self.trained, "skipped": self.skipped}
        return {
            "args": {"n_examples": self.n_examples, "settings": self.settings},
            "attributes": {
                "manifest": True,  # a checkpoint without one is a part: see training.checkpoints
                "counts": counts,
                "flops": asdict(self.flops),
                "ever_trained": base64.b64encode(bits).decode("ascii"),
                "sources": self.sources,
            },
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the counts of a checkpoint, or start at zero. The Trainer calls this method."""
        # The Trainer restores callbacks only on request, and as new objects, but it always loads their saved state.
        self._start_afresh()
        saved = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step == 0 or not isinstance(saved, dict):
            return
        self._began -= max((entry.get(ELAPSED, 0.0) for entry in state.log_history), default=0.0)
        before = {**saved["args"]["settings"], ROWS: saved["args"]["n_examples"]}
        now = {**self.settings, ROWS: self.n_examples}
        changed = [
            f"{name} was {_shown(value)} and is {_shown(now.get(name))}"
            for name, value in before.items()
            if _differ(value, now.get(name))
        ]
        if changed:
            logger.warning(
                f"This run is resumed with other settings than its checkpoint ({'; '.join(changed)}), so after step "
                f"{state.global_step} it selects other examples than an uninterrupted run."
            )
        if saved["args"]["n_examples"] == self.n_examples:
            self.seen, self.trained, self.skipped = (
                saved["attributes"]["counts"][name] for name in ("seen", "trained", "skipped")
            )
            self.flops = StepFlops(**saved["attributes"].get("flops", {}))
            saved_sources = saved["attributes"].get("sources", {})
            self.sources |= {name: tuple(counts) for name, counts in saved_sources.items() if name in self.sources}
            packed = zlib.decompress(base64.b64decode(saved["attributes"]["ever_trained"]))
            bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=len(self._ever_trained))
            self._ever_trained = bits.astype(bool)


def _differ(before: Any, now: Any) -> bool:
    """Whether a setting has changed. Two descriptions (dicts) are compared in the kinds that both have."""
    if isinstance(before, dict) and isinstance(now, dict):
        return any(now[kind] != value for kind, value in before.items() if kind in now)
    return bool(before != now)


def _shown(value: Any) -> str:
    """A setting for a message: of a description, its kind and its fingerprint."""
    return " ".join(f"{kind} {one}" for kind, one in value.items()) if isinstance(value, dict) else repr(value)
