# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The data of a run: super-batches to train on, and whole data sets, in order, to evaluate on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers.trainer_utils import seed_worker

from jest_hf.config import JESTConfig
from jest_hf.data.chosen import load_chosen
from jest_hf.data.fingerprint import first_readable
from jest_hf.data.keys import KeyedCollator, has_keys
from jest_hf.data.late import LateImages
from jest_hf.data.position import Position
from jest_hf.data.rows import EpochSampler, Rows, share_batches
from jest_hf.data.stream import StreamedBatches, load_stream
from jest_hf.data.streamed_rows import StreamedRows
from jest_hf.distributed import Ranks
from jest_hf.images.views import View
from jest_hf.objectives import Objective
from jest_hf.reference import FetchingCollator, ReferenceSource
from jest_hf.training.early_selection import EarlyBatches, EarlySelection
from jest_hf.training.images import RunImages


class Loaders:
    """
    Makes what reads the rows of a run.

    Args:
        args ([`JESTConfig`]): Options of the run.
        objective ([`Objective`]): Checks the rows, and makes the collators of an evaluation.
        view ([`~jest_hf.models.View`], *optional*): The scoring view.
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.
        images ([`~training.images.RunImages`]): The image cache of the run, where there is one.
        reference (`Callable`, *optional*): Returns the reference in use, or `None`. Default: there is none.
        resumed_at (`Callable`, *optional*): Returns the step that the run goes on after, and the position in its
            stream; called for streams alone. Default: the run starts anew.

    Attributes:
        late_images ([`~data.late.LateImages`], *optional*): Brings the full images of a sub-batch, where the loader
            makes the images of the view alone.
        early ([`~training.early_selection.EarlySelection`], *optional*): Selects before decoding, where a run can.
    """

    def __init__(
        self,
        args: JESTConfig,
        objective: Objective,
        view: View | None,
        ranks: Ranks,
        images: RunImages,
        reference: Callable[[], ReferenceSource | None] = lambda: None,
        resumed_at: Callable[[], tuple[int, Position | None]] = lambda: (0, None),
    ) -> None:
        self.args = args
        self.objective = objective
        self.view = view
        self.ranks = ranks
        self.reference = reference
        self.images = images
        self.late_images: LateImages | None = None
        self.early: EarlySelection | None = None
        self.resumed_at = resumed_at
        self._with_keys = False
        self._batches: StreamedBatches | None = None

    def stream(self, dataset: Any, collator: Any) -> Any:
        """
        The loader of a stream, which is read as it comes, each rank its own part: of super-batches or, where a run can
        select before decoding, of selected rows.

        Args:
            dataset: The stream.
            collator: The data collator of the run.

        Raises:
            ValueError: for `select_before_decoding=True` in a run whose scores need more than a cache, and for a
                checkpoint of another number of ranks or loader workers.
        """
        args, source = self.args, self.reference()
        n_skipped, start = self.resumed_at()
        options: dict[str, Any] = {
            "n_skipped": n_skipped,
            "start": start,
            "image_column": collator.image_column,
            "ranks": self.ranks,
            "device": args.device,
            "non_blocking": cast(Any, args.accelerator_config).non_blocking,
            **self._worker_options,
        }
        loss = self.objective.loss_kind
        self.early = EarlySelection.where_it_serves(args, source, loss, collator, self.ranks, from_stream=True)
        self._with_keys = args.record_selection and has_keys(dataset)
        read = self.training_collator(collator)
        if self.early is None:
            loader = load_stream(dataset, read, args.per_device_super_batch_size, **options)
        else:
            n_candidates = args.candidates_size // self.ranks.size
            loader = load_chosen(dataset, read, n_candidates, self.early.choose, **options)
        self._batches = cast(StreamedBatches, loader.dataset)
        return loader

    def position(self, step: int) -> Position | None:
        """Where this rank is in its stream after a step, for a checkpoint; `None` if that is not known."""
        positions = {} if self._batches is None else self._batches.positions
        return positions[step] if positions else None

    def rows(self, dataset: Any, collator: Any, source: ReferenceSource | None) -> tuple[Rows, EpochSampler]:
        """
        The rows of a map-style data set, and their order, which depends on (data_seed, epoch) alone.

        Args:
            dataset: The data set.
            collator: The data collator of the run.
            source ([`~jest_hf.reference.ReferenceSource`], *optional*): The reference in use. If it needs the images
                of the super-batch, these cannot come late.

        Raises:
            ValueError: without a data set.
        """
        if dataset is None:
            raise ValueError("train_dataset=None: pass the rows to train on to JESTTrainer.")
        args, view = self.args, self.view
        rows, images = Rows(dataset, collator.image_column), self.images.cache
        if images is not None:
            rows = rows.with_images(images)
        self.late_images = None
        self._with_keys = args.record_selection and has_keys(dataset)
        reads_images = source is not None and source.reads_images
        if view is not None and args.selects and not reads_images and images is None:  # a cache has all sizes
            settings = args.settings
            in_full = (1 - settings.filter_ratio) * (1 - settings.low_resolution_fraction)
            n_threads = max(1, args.dataloader_num_workers)
            self.late_images = LateImages.where_it_serves(rows, self._at_view(collator), in_full, n_threads)
        return rows, EpochSampler(len(rows), seed=args.seed if args.data_seed is None else args.data_seed)

    def early_loader(
        self,
        rows: Rows,
        sampler: EpochSampler,
        collator: Any,
        source: ReferenceSource | None,
    ) -> Any | None:
        """
        The loader of sub-batches that are selected before decoding, with [`EarlySelection`]; `None` where the step
        selects.

        Args:
            rows ([`~data.rows.Rows`]): The training data.
            sampler ([`~data.rows.EpochSampler`]): The order of the rows.
            collator: The data collator of the run.
            source ([`~jest_hf.reference.ReferenceSource`], *optional*): The reference in use.

        Raises:
            ValueError: for `select_before_decoding=True` in a run whose scores need more than a cache.
        """
        args = self.args
        self.early = EarlySelection.where_it_serves(args, source, self.objective.loss_kind, collator, self.ranks)
        if self.early is None:
            return None
        if self.early.is_final:
            self.late_images = None
        batches = EarlyBatches(sampler, self.early, args.candidates_size, args.dataloader_drop_last)
        loader: DataLoader[Any] = DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=self.training_collator(collator),
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
            **self._worker_options,
        )
        # The batches are this rank's own: accelerate must not split them once more.
        return prepare_data_loader(
            loader,
            args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=cast(Any, args.accelerator_config).non_blocking,
        )

    @property
    def _worker_options(self) -> dict[str, Any]:
        """The options of the run about loader workers, by their names in a torch `DataLoader`."""
        args = self.args
        return {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
        }

    def training_collator(self, collator: Any) -> Any:
        """The collator of super-batches: with images at the scoring view too, or with these alone; and with the
        reference's cached scores, of rows that are those of the cache."""
        collator = self._at_view(collator) if self.late_images is None else self.late_images.collator
        if (source := self.reference()) is not None:
            collator = source.comparing(collator)
        if self.early is not None and self.early.is_final and not self.args.settings.distillation_weight:
            return self._keyed(collator)  # the scores have been used
        return self._keyed(self._fetching(collator))

    def _keyed(self, collator: Any) -> Any:
        return KeyedCollator(collator) if self._with_keys else collator

    def _fetching(self, collator: Any) -> Any:
        source = self.reference()
        return collator if source is None or source.reads_images else FetchingCollator(collator, source)

    def _at_view(self, collator: Any) -> Any:
        return collator if self.view is None else collator.at_view(self.view)

    def evaluation(self, dataset: Any, collator: Any) -> DataLoader[Any]:
        """
        This rank's share of the rows to evaluate on, in order.

        Raises:
            ValueError: for labels that are not the model's.
        """
        return self._whole(dataset, collator)

    def prediction(self, dataset: Any, collator: Any) -> DataLoader[Any]:
        """As [`~Loaders.evaluation`], of rows that need no labels."""
        return self._whole(dataset, self.objective.prediction_collator(collator))

    def _whole(self, dataset: Any, collator: Any) -> DataLoader[Any]:
        self.objective.check_data(dataset, collator)
        if self.args.eval_at_view:
            collator = collator.at_view(self.view)
        rows = Rows(dataset, collator.image_column)
        return DataLoader(
            rows,
            batch_sampler=cast(Any, share_batches(len(rows), self.args.eval_batch_size, self.ranks)),
            collate_fn=self.objective.eval_collator(collator),
            num_workers=self.args.dataloader_num_workers,
        )


def first_row(dataset: Any, image_column: str | None, is_stream: bool) -> dict[str, Any]:
    """
    The first row of a stream, or the first one of map-style data that can be read, to see what the rows are like.

    Raises:
        ValueError: for a stream without rows.
    """
    if not is_stream:
        return first_readable(Rows(dataset, image_column))
    row = next(iter(StreamedRows(dataset, image_column)), None)
    if row is None:
        raise ValueError("train_dataset is a stream without a single row; check what it reads.")
    return row


__all__ = ["Loaders", "first_row"]
