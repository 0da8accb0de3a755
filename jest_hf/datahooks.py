# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The Trainer's hooks that see data sets: super-batches to train on, and the evaluation of whole data sets."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from jest_hf.config import JESTConfig
from jest_hf.data.epochs import EpochCallback
from jest_hf.data.rows import EpochSampler, Rows, share_batches
from jest_hf.data.stream import StreamedRows, is_stream, load_stream
from jest_hf.distributed import Ranks
from jest_hf.late import LateImages
from jest_hf.losses.pointwise import IGNORED
from jest_hf.models import View, base_model
from jest_hf.models.mixture import rows_at_view
from jest_hf.objectives import Evaluated, Objective
from jest_hf.online import OnlineReference
from jest_hf.reference import Reference
from jest_hf.report.flops import flops_of_cache, flops_of_step


def number_of_rows(dataset: Any, image_column: str, ranks: Ranks) -> int | None:
    """
    Rows of the training data, whose form is checked; `None` for a stream and for no data.

    Raises:
        TypeError, ValueError: as [`Rows`] and [`StreamedRows`].
    """
    if dataset is None:
        return None
    if is_stream(dataset):
        StreamedRows(dataset, image_column, ranks)
        return None
    return len(Rows(dataset, image_column))


def check_functions(objective: Objective, args: JESTConfig, functions: Mapping[str, Any]) -> None:
    """
    Functions of a user's own, among the further arguments of a Trainer: none is taken that would not be called.

    Raises:
        ValueError: for one that selection or evaluation cannot do with.
    """
    for name, way_out in (
        ("compute_loss_func", "set label_smoothing_factor, or subclass the objective"),
        ("preprocess_logits_for_metrics", "do it in compute_metrics"),
    ):
        if functions.get(name) is not None:
            raise ValueError(
                f"{name} is not called here: selection has to know the loss of each example, and evaluation keeps the "
                f"logits of whole examples; {way_out}."
            )
    objective.check_metrics(functions.get("compute_metrics"))
    if args.batch_eval_metrics:
        raise ValueError(
            "batch_eval_metrics=True is not done here: compute_metrics is called once, with a whole data set; leave "
            "it out."
        )


class DataHooks:
    """A part of [`~jest_hf.JESTTrainer`], which it is mixed into; nothing in here knows of selection."""

    def first_row(self) -> dict[str, Any]:
        """The first training row, to see what the rows are like."""
        if is_stream(self.train_dataset):
            row = next(iter(StreamedRows(self.train_dataset, self.data_collator.image_column)), None)
            if row is None:
                raise ValueError("train_dataset is a stream without a single row; check what it reads.")
            return row
        return Rows(self.train_dataset, self.data_collator.image_column)[0]

    def try_inputs(self) -> None:
        """
        Collate one row of each data set: a missing column or a foreign processor shows here and not in a worker. The
        shapes tell what a step will cost.
        """
        if self.train_dataset is not None:
            batch = self.data_collator([self.first_row()])
            readers = {"learner": (self.learner_view, self.model.config)}
            if self.proxy is not None:
                readers["proxy"] = (self.proxy.reader, self.proxy.model.config)
            if self.online_reference is not None:
                online = self.online_reference.online
                readers["reference"] = (online.reader, online.model.config)
            elif isinstance(self.reference, Reference):  # of an engine the configuration is another one
                readers["reference"] = (self.reference.view, base_model(self.ref_model or self.model).config)
            forward, widths = {}, {}
            for role, (reader, config) in readers.items():
                inputs = reader.inputs(batch)
                self.objective.check(inputs, config, role, batch.get("labels"))
                forward[role] = self.objective.forward_flops(config, inputs)
                widths[role] = self.objective.width(config)
                if role == "learner" and self.scoring_view is not None:
                    forward["learner_at_view"] = self.objective.forward_flops(config, inputs, self.scoring_view)
            if self.reference_cache is not None:
                widths["reference"] = self.reference_cache.width
            self.flops_of_step = partial(flops_of_step, self.args, forward, widths)
            self.step_flops = self.flops_of_step()
            self.cache_flops = flops_of_cache(self.args, forward, self.statistics.n_examples)
        if self.eval_dataset is not None:
            several = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
            for name, dataset in several.items():
                try:
                    loader = self.get_eval_dataloader(dataset)
                    loader.collate_fn([loader.dataset[0]])
                except (TypeError, ValueError) as error:
                    which = f"eval_dataset[{name!r}]" if name else "eval_dataset"
                    error.args = (f"{which}: {error}",)
                    raise

    def _at_view(self, view: View | None) -> Any:
        """The collator, with images at the view where there is one."""
        return self.data_collator if view is None else self.data_collator.at_view(view)

    def get_train_dataloader(self) -> DataLoader:
        """
        This rank's share of super-batches of `args.super_batch_size` rows.

        The order of a map-style data set depends on (data_seed, epoch) alone: all ranks together see the same
        super-batches whatever their number. The last, incomplete super-batch is dropped, on all ranks alike. A stream
        is read as it comes, each rank its own part.
        """
        args, dataset = self.args, self.train_dataset
        if dataset is None:
            raise ValueError("train_dataset=None: pass the rows to train on to JESTTrainer.")
        collator = self._at_view(self.scoring_view)
        if is_stream(dataset):
            return load_stream(
                dataset,
                collator,
                args.per_device_super_batch_size,
                image_column=self.data_collator.image_column,
                ranks=self.ranks,
                device=args.device,
                num_workers=args.dataloader_num_workers,
                pin_memory=args.dataloader_pin_memory,
                persistent_workers=args.dataloader_persistent_workers,
                prefetch_factor=args.dataloader_prefetch_factor,
            )
        rows = Rows(dataset, self.data_collator.image_column)
        self.late_images = None
        selects = args.selection != "uniform"
        if self.scoring_view is not None and selects and not isinstance(self.reference, Reference | OnlineReference):
            in_full = (1 - args.filter_ratio) * (1 - args.low_resolution_fraction)
            n_threads = max(1, args.dataloader_num_workers)
            self.late_images = LateImages.where_it_serves(rows, collator, in_full, n_threads)
        sampler = EpochSampler(len(rows), seed=args.data_seed)
        self.pop_callback(EpochCallback)
        self.add_callback(EpochCallback(sampler))
        return self._get_dataloader(
            dataset=rows,
            description="Training",
            batch_size=args.per_device_super_batch_size,
            sampler_fn=lambda _: sampler,
            is_training=True,
        )

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        """What the Trainer's loader of training data collates with: images at the scoring view too, or alone."""
        # Not set on the finished loader: accelerate hands out one that wraps it, and the inner one goes on as before.
        return self._at_view(self.scoring_view) if self.late_images is None else self.late_images.collator

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """
        This rank's share of the rows, in order, each image with all of its captions (see [`CaptionCollator`]).

        Raises:
            ValueError: for labels that are not the model's.
        """
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        elif eval_dataset is None:
            eval_dataset = self.eval_dataset
        if eval_dataset is None:
            raise ValueError("eval_dataset=None: pass the rows to evaluate on to JESTTrainer or to evaluate().")
        return self._whole(eval_dataset, self.data_collator)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """As [`get_eval_dataloader`], of rows to predict: they need no labels."""
        return self._whole(test_dataset, self.objective.prediction_collator(self.data_collator))

    def _whole(self, dataset: Any, collator: Any) -> DataLoader:
        """This rank's share of all rows of a data set, in order."""
        self.objective.check_data(dataset, collator)
        if self.args.eval_at_view:
            collator = collator.at_view(self.scoring_view)
        rows = Rows(dataset, collator.image_column)
        return DataLoader(
            rows,
            batch_sampler=share_batches(len(rows), self.args.eval_batch_size, self.ranks),
            collate_fn=self.objective.eval_collator(collator),
            num_workers=self.args.dataloader_num_workers,
        )

    def _n_at_view(self, n_rows: int) -> int:
        """How many of this rank's rows are trained on at the scoring view. A collective."""
        if self.scoring_view is None:
            return 0
        return rows_at_view(self.args.low_resolution_fraction, n_rows, self._fewest_rows(n_rows))

    def _fewest_rows(self, n_rows: int) -> int:
        """Rows of the rank that trains on the fewest: where many are broken, ranks may be an example apart."""
        return min(self.ranks.gather_counts(n_rows, self.args.device))

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """
        What the objective measures, over the whole data set, and `compute_metrics` of the rows with a label.

        With `args.eval_at_view` once more at the scoring view, as `{prefix}_at_view_R@1` and so on. Predictions and
        labels of examples that stand alone have a row for each of the data set, in its order: NaN where it cannot be
        read, -100 where it has no label.
        """
        reads = {"": self.learner_view}
        if self.args.eval_at_view:
            reads["at_view_"] = partial(self.learner_view, view=self.scoring_view)
        evaluated = {}
        with self.accelerator.autocast():
            for name, read in reads.items():
                evaluated[name] = self.objective.evaluate(
                    read, self.model_wrapped, dataloader, self.args.device, self.ranks
                )
        metrics = {
            f"{metric_key_prefix}_{name}{metric}": value
            for name, one in evaluated.items()
            for metric, value in one.metrics().items()
        }
        result = evaluated[""]
        return EvalLoopOutput(
            predictions=result.predictions,
            label_ids=result.label_ids,
            metrics=metrics | self._own_metrics(result, f"{metric_key_prefix}_"),
            num_samples=result.n_examples,
        )

    def _own_metrics(self, result: Evaluated, prefix: str) -> dict[str, Any]:
        """What the user's `compute_metrics` says of the rows with a label, under names like the Trainer's."""
        labels = result.label_ids
        if self.compute_metrics is None or labels is None:
            return {}
        known = labels != IGNORED
        found = self.compute_metrics(EvalPrediction(predictions=result.predictions[known], label_ids=labels[known]))
        return {
            name if name.startswith(prefix) else prefix + name: value
            for name, value in denumpify_detensorize(found).items()
        }
