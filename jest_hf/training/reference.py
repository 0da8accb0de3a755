# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The reference of a run: found before the Trainer exists, placed after it, cached before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from jest_hf.config import JESTConfig
from jest_hf.data.image_cache import ImageCache
from jest_hf.data.rows import Rows
from jest_hf.distributed import Ranks, ask_first_rank
from jest_hf.hub.pull import Snapshot
from jest_hf.models import Reader, add_reference_adapter
from jest_hf.models.adapters import adapter_tensors
from jest_hf.models.fit import check_loss
from jest_hf.models.labelled import PointwiseReader
from jest_hf.objectives import Objective
from jest_hf.reference import (
    CachedReference,
    Reference,
    ReferenceCache,
    ReferenceSource,
    describe_reference,
    identify_reference,
    load_reference,
    locate_adapter,
    open_cache,
    place_reference,
)
from jest_hf.reference.load import check_adapter
from jest_hf.reference.losses import IrreducibleLosses
from jest_hf.training.engine import Engine


logger = logging.get_logger(__name__)


class ReferencePlan:
    """
    Finds, places and caches the reference; `source` is the one in use.

    Args:
        args ([`JESTConfig`]): Options of the run.
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.

    Attributes:
        ref_model ([`~transformers.PreTrainedModel`], *optional*): The reference's model, as long as the run needs it.
        cache ([`~jest_hf.reference.ReferenceCache`], *optional*): The cache that `args.reference_cache` names.
        source ([`~jest_hf.reference.ReferenceSource`], *optional*): What scores. `None` before it is placed, and in a
            run without a reference.
    """

    def __init__(self, args: JESTConfig, ranks: Ranks) -> None:
        self.args = args
        self.ranks = ranks
        self.ref_model: PreTrainedModel | None = None
        self.cache: ReferenceCache | None = None
        self.source: ReferenceSource | None = None
        self._adapter: Snapshot | None = None
        self._identity: dict[str, Any] = {}
        self._live: Reference | None = None  # a reference that can be cached

    def find(
        self,
        learner: nn.Module | None,
        ref_model: PreTrainedModel | str | None,
        processor: Any | None,
        collator: Any,
    ) -> Any | None:
        """
        Load what the options name: `ref_model`, or `reference_cache`, or an adapter beside the learner's. What comes
        from the Hub is of the same commit on all ranks. A collective.

        Args:
            learner ([`~transformers.PreTrainedModel`], *optional*): The learner.
            ref_model (*optional*): As in [`JESTTrainer`].
            processor (*optional*): The reference's processor, as far as it was passed.
            collator: The data collator of the run, as far as it is known.

        Returns:
            The processor of a reference that has its own.
        """
        args = self.args
        if not args.uses_reference:
            return None
        revision, device = args.ref_model_revision, args.device
        if args.reference_cache is not None:
            self.cache = open_cache(
                args.reference_cache, args.reference_cache_revision, ranks=self.ranks, device=device
            )
            if ref_model is not None or processor is not None:
                described = ask_first_rank(
                    self.ranks, lambda: describe_reference(ref_model, revision, processor, collator), device
                )
                self.cache.check(**described)
        elif args.reference == "adapter":
            if ref_model is not None and not isinstance(ref_model, str):
                raise ValueError(
                    f"reference='adapter' takes the Hub id or the path of an adapter as ref_model, got a "
                    f"{type(ref_model).__name__}; pass the id or path, or set reference='model'."
                )
            if ref_model is not None:
                self._adapter = locate_adapter(ref_model, revision, ranks=self.ranks, device=device)
            if learner is None:
                raise ValueError("reference='adapter' needs the learner from the start; pass model, not model_init.")
            add_reference_adapter(learner, None if self._adapter is None else self._adapter.folder)
            if self._adapter is not None:
                check_adapter(self._adapter.folder, adapter_tensors(learner), f"ref_model={ref_model!r}")
        elif ref_model is not None:
            self.ref_model, processor = load_reference(ref_model, revision, processor, ranks=self.ranks, device=device)
            return processor
        return None

    def frozen(self, learner: nn.Module) -> nn.Module | ReferenceCache | None:
        """Return what scores as a frozen reference: a cache, the learner's backbone, or the reference's own model."""
        if not self.args.uses_reference or self.args.reference == "online":
            return None
        return self.cache or (learner if self.args.reference == "adapter" else self.ref_model)

    def place(
        self,
        objective: Objective,
        learner: nn.Module,
        learner_reader: Reader,
        collator: Any,
        processor: Any,
        train_dataset: Any,
        engine: Engine,
    ) -> None:
        """
        Put a frozen reference where it is to score, once device and engine are known. Before that its weights are
        identified for a cache, since an engine spreads or rounds them. An online reference is set by
        [`~training.companions.Companions`].
        """
        args = self.args
        if not args.uses_reference or args.reference == "online":
            return
        if self.cache is not None:
            if objective.loss_kind is not None:
                check_loss(objective.loss_kind, "reference cache", self.cache.logit_bias is not None)
            self.cache.verify_ahead()  # while the run is being made
            self.source = CachedReference.of(self.cache, train_dataset, collator)
            return
        if args.cache_reference:
            self._identity = identify_reference(self.ref_model or learner)
        if args.reference == "adapter":
            self._live = Reference(learner_reader, learner, shared=True, adapter=self._adapter)
        elif self.ref_model is not None:
            processor = collator.ref_processor or processor
            view = objective.reader(self.ref_model, processor, "reference", prefix="ref_")
            model = place_reference(self.ref_model, engine.accelerator, args.ref_placement)
            self._live = Reference(view, model, config=self.ref_model.config)
        self.source = self._live

    def cache_now(
        self, objective: Objective, dataset: Any, collator: Any, engine: Engine, images: ImageCache | None = None
    ) -> float | None:
        """
        Cache the reference's scores of the training data, with `args.cache_reference`, and use the cache from now on.
        A collective.

        Args:
            images ([`~jest_hf.data.image_cache.ImageCache`], *optional*): Images of the data, to read in place of
                their files.

        Returns:
            FLOPs of making the cache, where the cache knows them.
        """
        if not self.args.cache_reference or self._live is None:
            return None
        with engine.autocast():
            return self._write(self._live, objective, dataset, collator, engine, images)

    def _write(
        self,
        live: Reference,
        objective: Objective,
        dataset: Any,
        collator: Any,
        engine: Engine,
        images: ImageCache | None,
    ) -> float | None:
        if getattr(dataset, "format", {}).get("type") == "custom":
            logger.warning(
                "cache_reference=True embeds every row once, and the training data have a transform of their own: if "
                "it is random, the reference will have seen another draw than the learner; then set "
                "cache_reference=False."
            )
        args, folder = self.args, Path(str(self.args.output_dir))
        rows = Rows(dataset, collator.image_column)
        options = {
            "reference": self._identity,
            "batch_size": args.scoring_batch_size or args.per_device_train_batch_size,
            "precision": engine.accelerator.mixed_precision,
            "replace": True,
            "device": args.device,
            "num_workers": args.dataloader_num_workers,
            "disable_tqdm": args.disable_tqdm,
            "ranks": self.ranks,
        }
        flops = None
        if objective.cached_as == "losses":
            file = folder / "irreducible_losses.safetensors"
            with live.switched_on():
                reader = cast(PointwiseReader, live.view)  # as `Objective.cached_as` requires
                data = rows if images is None else rows.with_images(images)
                self.source = IrreducibleLosses.compute(file, reader, live.model, data, collator, **options)
        else:
            options |= {"images": images, "dtype": "float32"}
            cached = live.write_cache(folder / "reference_cache", live.config, rows, collator, **options)
            self.source, flops = cached, cached.cache.flops
            cached.cache.verify_ahead()
        self.ref_model, self._live = None, None  # the run does not need their memory any more
        return flops

    def about(self) -> dict[str, Any]:
        """Return what a model card says about the reference, by the names of `RunSummary`."""
        args = self.args
        if self.ref_model is not None:
            config = self.ref_model.config
            commit = getattr(config, "_commit_hash", None)  # set by from_pretrained alone
            return {"reference": config._name_or_path or None, "reference_revision": commit or args.ref_model_revision}
        if self.source is None:
            return {}
        return {
            "reference_is_backbone": args.reference == "adapter",
            "reference_cache": args.reference_cache,
            "reference_cache_revision": args.reference_cache_revision,
            **self.source.about(),
        }


__all__ = ["ReferencePlan"]
