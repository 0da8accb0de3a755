# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the trainer writes down, and reads again: counts and FLOPs, the ledger, the model card, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from jest_hf.distributed import Exchanged
from jest_hf.hub.run import write_run_card
from jest_hf.models.load import restore_renamed
from jest_hf.report.flops import StepFlops


logger = logging.get_logger(__name__)


class RecordHooks:
    """A part of [`~jest_hf.JESTTrainer`], which it is mixed into."""

    _spent = StepFlops()  # in the step being taken

    def record(self, taken: Exchanged, super_batch: dict[str, Tensor]) -> None:
        """Count the step, and write down which examples every rank trains on, and when they were drawn."""
        valid = super_batch["valid"]
        seen, skipped = self.ranks.sum(torch.stack([torch.ones_like(valid).sum(), (~valid).sum()])).tolist()
        columns = torch.stack([taken.batch["example_id"], taken.order], dim=1)
        counts = self.ranks.gather_counts(len(columns), columns.device)
        ids, order = self.ranks.gather_rows(columns, counts).cpu().T
        if self.group.size > 1:
            self.statistics.add({"exchange/examples": taken.moved, "exchange/bytes": taken.bytes_moved})
        scored = seen if self.selects else 0
        self._spent = self.flops_of_step(trained=len(ids), scored=scored, readable=seen - skipped)
        self.statistics.count(seen=seen, skipped=skipped, trained_ids=ids, flops=self._spent)
        if self.sources is not None:
            own = self.sources.count(super_batch["example_id"]).to(valid.device)
            self.statistics.count_sources(self.sources.count(ids), self.ranks.sum(own).cpu())
        if self.ledger is not None:
            ranks = torch.arange(self.ranks.size).repeat_interleave(torch.tensor(counts))
            self.ledger.record(self._step, ids, ranks, order)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, timed: a loader that cannot keep up shows as `loading_seconds`."""
        with self.timed("loading_seconds"):
            return super().get_batch_samples(*args, **kwargs)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Wall time of a verb, with the device's queue drained: the Trainer waits for the loss of each step anyway."""
        start = time.perf_counter()
        yield
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)
        self.statistics.add({name: time.perf_counter() - start})

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> float:
        """FLOPs of the step just taken, for `state.total_flos`: both towers, scoring, reference and selection."""
        return self._spent.total / self.args.world_size  # the Trainer adds up what the ranks say

    @property
    def run_flops(self) -> StepFlops:
        """FLOPs of the run so far, of what its steps did, caching the reference included, plain convention."""
        return self.statistics.flops + StepFlops(reference=self.cache_flops)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the selections of the logging window looked like to a training log."""
        if "loss" in logs:
            logs.update(self.statistics.pop())
        elif "train_runtime" in logs:
            spent = self.run_flops
            # In IID training of as many examples: what the run has to save in examples to pay.
            relative = {"flops_relative_to_iid": spent.relative_to_iid} if spent.training else {}
            logs.update(self.statistics.totals() | relative)
        super().log(logs, start_time)

    def create_model_card(self, language: str | list[str] | None = None, **about: Any) -> None:
        """Write the model card of this run to `output_dir/README.md`; the arguments are those of the Trainer's."""
        if self.is_world_process_zero():
            write_run_card(self, language=language, **about)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # First: a run killed in between resumes from the older checkpoint, whose ledger is a part of this one.
        if self.ledger is not None:
            self.ledger.flush()
        if self.args.push_to_hub:  # it goes up with the checkpoint
            try:
                self.create_model_card()
            except ValueError as error:  # of a README.md that somebody has edited: no reason to end a run
                logger.warning("The model card is left as it is: %s", error)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is not None or self.is_fsdp_enabled or not restore_renamed(self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        engine = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if engine or not restore_renamed(self.model, self.state.best_model_checkpoint):
            super()._load_best_model()


__all__ = ["RecordHooks"]
