# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's reference: found before the Trainer exists, placed after it, cached before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from jest_hf.config import JESTConfig
from jest_hf.data.rows import Rows
from jest_hf.distributed import ask_first_rank
from jest_hf.models import add_reference_adapter, base_model
from jest_hf.online import OnlineReference
from jest_hf.reference import (
    CachedReference,
    Reference,
    describe_reference,
    identify_reference,
    load_reference,
    locate_adapter,
    open_cache,
    place_reference,
)
from jest_hf.reference.losses import IrreducibleLosses
from jest_hf.validation import check_loss


logger = logging.get_logger(__name__)


class ReferenceHooks:
    """A part of [`~jest_hf.JESTTrainer`], which it is mixed into."""

    def find_reference(
        self,
        args: JESTConfig,
        learner: nn.Module,
        ref_model: PreTrainedModel | str | None,
        processor: Any | None,
        collator: Any,
    ) -> Any | None:
        """
        Load what the run asks of a reference: `ref_model`, or `reference_cache`, or an adapter beside the learner's.
        What comes from the Hub is of the same commit on all ranks. `collator` is the run's, as far as it is known.

        Returns:
            The processor of a reference that has its own.
        """
        self.ref_model, self.reference_cache, self.reference_adapter = None, None, None
        if not args.uses_reference:
            return None
        revision, together = args.ref_model_revision, {"ranks": self.ranks, "device": args.device}
        if args.reference_cache is not None:
            self.reference_cache = open_cache(args.reference_cache, args.reference_cache_revision, **together)
            if ref_model is not None or processor is not None:
                described = ask_first_rank(
                    self.ranks, lambda: describe_reference(ref_model, revision, processor, collator), args.device
                )
                self.reference_cache.check(**described)
        elif args.reference == "adapter":
            if ref_model is not None:
                self.reference_adapter = locate_adapter(ref_model, revision, **together)
            add_reference_adapter(learner, self.reference_adapter and self.reference_adapter.folder)
        elif ref_model is not None:
            self.ref_model, processor = load_reference(ref_model, revision, processor, **together)
            return processor
        return None

    def place_reference(self) -> Reference | CachedReference | OnlineReference | None:
        """What a step asks, once the Trainer knows device and engine."""
        data_collator = self.data_collator
        if not self.args.uses_reference:
            return None
        if self.args.reference == "online":
            self.make_online_reference()
            return self.online_reference
        if self.reference_cache is not None:
            check_loss(self.objective.loss_kind, "reference cache", self.reference_cache.logit_bias is not None)
            return CachedReference.of(self.reference_cache, self.train_dataset, data_collator)
        if self.args.cache_reference:  # before the weights are spread or rounded
            self.reference_identity = identify_reference(self.ref_model or self.model)
        if self.args.reference == "adapter":
            return Reference(self.learner_view, self.model, shared=True, adapter=self.reference_adapter)
        processor = data_collator.ref_processor or self.processing_class
        view = self.objective.reader(self.ref_model, processor, "reference", prefix="ref_")
        return Reference(view, place_reference(self.ref_model, self.accelerator, self.args.ref_placement))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As [`~transformers.Trainer.train`], after caching the reference if `args.cache_reference`."""
        if self.args.cache_reference and isinstance(self.reference, Reference):
            with self.accelerator.autocast():
                self._cache_reference()
        return super().train(*args, **kwargs)

    def _cache_reference(self) -> None:
        if getattr(self.train_dataset, "format", {}).get("type") == "custom":
            logger.warning(
                "cache_reference=True embeds every row once, and the training data have a transform of their own: if "
                "it is random, the reference will have seen another draw than the learner; then set "
                "cache_reference=False."
            )
        args, folder = self.args, Path(self.args.output_dir)
        data = Rows(self.train_dataset, self.data_collator.image_column), self.data_collator
        options = {
            "reference": self.reference_identity,
            "batch_size": args.scoring_batch_size or args.per_device_train_batch_size,
            "precision": self.accelerator.mixed_precision,
            "replace": True,
            "device": args.device,
            "num_workers": args.dataloader_num_workers,
            "disable_tqdm": args.disable_tqdm,
            "ranks": self.ranks,
        }
        if not self.objective.pairs:
            view, model, file = self.reference.view, self.reference.model, folder / "irreducible_losses.safetensors"
            with self.reference.speaking():
                self.reference = IrreducibleLosses.compute(file, view, model, *data, **options)
            self.ref_model = None
            return
        config = base_model(self.ref_model or self.model).config
        self.reference = self.reference.write_cache(
            folder / "reference_cache", config, *data, dtype="float32", **options
        )
        self.ref_model, self.cache_flops = None, self.reference.cache.flops


__all__ = ["ReferenceHooks"]
