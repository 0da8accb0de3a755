# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Telling the sampler which epoch it is."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from jest_hf.data.rows import EpochSampler


class EpochCallback(TrainerCallback):
    """
    Sets the epoch of a sampler. The Trainer tells its loader, but of the wrappers that accelerate puts between the two
    (shards of several processes, batches skipped after a resume) not every combination passes it on.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))
