# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run says about its selections: counts over the whole run, means over each logging window.

`compare_selected` puts numbers on a selection (did it pick examples that the learner can still learn?);
`RunStatistics` adds them up, and rides in the checkpoint so that a resumed run goes on counting where it stopped.
"""

from __future__ import annotations

import base64
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

from jest_hf.report.flops import StepFlops


logger = logging.get_logger(__name__)


class RunStatistics(TrainerCallback, ExportableState):
    """
    Counts examples and averages per-step metrics between two logs.

    Args:
        n_examples (`int`, *optional*): rows of the training data; one bit of each is kept (for the unique share).
            `None` for a stream, of which nothing is kept.
        source_names (sequence of `str`, *optional*): sources of the data, whose selection rates are counted.
        settings (`dict`): what decides the selection. A run that is resumed with other settings is told so.
    """

    def __init__(self, n_examples: int | None, settings: dict[str, Any], source_names: Sequence[str] = ()) -> None:
        self.n_examples = n_examples
        self.settings = settings
        self.source_names = source_names
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.seen = self.trained = self.skipped = 0
        self.flops = StepFlops()
        # By source: examples trained on, and seen.
        self.sources = dict.fromkeys(self.source_names, (0, 0))
        self._ever_trained = np.zeros(self.n_examples or 0, dtype=bool)
        self._window: dict[str, list[float]] = defaultdict(list)

    @property
    def unique_share(self) -> float | None:
        """Distinct examples as a share of all trained on; 1.0 where none came twice, `None` for a stream."""
        if self.n_examples is None:
            return None
        return float(self._ever_trained.sum() / self.trained) if self.trained else 1.0

    def count(self, *, seen: int, skipped: int, trained_ids: Tensor, flops: StepFlops) -> None:
        """Add one step: rows seen in its super-batch, broken ones among them, ids of the examples trained on, cost."""
        self.seen += seen
        self.skipped += skipped
        self.trained += len(trained_ids)
        self.flops += flops
        if self.n_examples is not None:
            self._ever_trained[trained_ids.numpy()] = True

    def count_sources(self, trained: Tensor, seen: Tensor) -> None:
        """Add one step: by source, in the order of `source_names`, examples trained on and seen, int64."""
        for name, more_trained, more_seen in zip(self.source_names, trained.tolist(), seen.tolist(), strict=True):
            so_far, seen_so_far = self.sources[name]
            self.sources[name] = (so_far + more_trained, seen_so_far + more_seen)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add one step's metrics to the window."""
        for name, value in metrics.items():
            self._window[name].append(value)

    def pop(self) -> dict[str, float]:
        """Means over the window, which starts anew, and [`totals`]."""
        means = {name: float(np.mean(values)) for name, values in self._window.items()}
        self._window.clear()
        return {**means, **self.totals()}

    def totals(self) -> dict[str, float]:
        """Counts over the whole run, resumed parts included."""
        totals = {
            "examples_seen": self.seen,
            "examples_trained": self.trained,
            "examples_skipped": self.skipped,
            "unique_share": self.unique_share,
        }
        totals |= {f"selection_rate/{name}": m / n for name, (m, n) in self.sources.items() if n > 0}
        return {name: value for name, value in totals.items() if value is not None}

    def state(self) -> dict[str, Any]:
        bits = zlib.compress(np.packbits(self._ever_trained).tobytes())
        counts = {"seen": self.seen, "trained": self.trained, "skipped": self.skipped}
        return {
            "args": {"n_examples": self.n_examples, "settings": self.settings},
            "attributes": {
                "counts": counts,
                "flops": asdict(self.flops),
                "ever_trained": base64.b64encode(bits).decode("ascii"),
                "sources": self.sources,
            },
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The Trainer restores callbacks only on request, and then as other objects; the state itself is always loaded.
        self._start_afresh()
        saved = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step == 0 or not isinstance(saved, dict):
            return
        changed = [name for name, value in saved["args"]["settings"].items() if self.settings.get(name) != value]
        if changed or saved["args"]["n_examples"] != self.n_examples:
            what = ", ".join(changed) or "the number of training rows"
            logger.warning(
                f"This run is resumed with other settings than its checkpoint ({what}): from step {state.global_step} "
                "on it selects other examples than the uninterrupted run would have."
            )
        if saved["args"]["n_examples"] == self.n_examples:
            self.seen, self.trained, self.skipped = (
                saved["attributes"]["counts"][name] for name in ("seen", "trained", "skipped")
            )
            self.flops = StepFlops(**saved["attributes"].get("flops", {}))
            saved_sources = saved["attributes"].get("sources", {})
            self.sources |= {name: tuple(counts) for name, counts in saved_sources.items() if name in self.sources}
            bits = zlib.decompress(base64.b64decode(saved["attributes"]["ever_trained"]))
            bits = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(self._ever_trained))
            self._ever_trained = bits.astype(bool)
