# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The Trainer's hooks that see data sets: super-batches to train on, and the evaluation of whole data sets."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput

from jest_hf.data.epochs import EpochCallback
from jest_hf.data.rows import EpochSampler, Rows, share_batches
from jest_hf.data.stream import StreamedRows, is_stream, load_stream
from jest_hf.distributed import Ranks
from jest_hf.evaluation.tasks import CaptionCollator, embed_dataset


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
        if is_stream(dataset):
            return load_stream(
                dataset,
                self.data_collator,
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

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """This rank's share of the rows, in order, each image with all of its captions (see [`CaptionCollator`])."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        elif eval_dataset is None:
            eval_dataset = self.eval_dataset
        if eval_dataset is None:
            raise ValueError("eval_dataset=None: pass the rows to evaluate on to JESTTrainer or to evaluate().")
        rows = Rows(eval_dataset, self.data_collator.image_column)
        return DataLoader(
            rows,
            batch_sampler=share_batches(len(rows), self.args.eval_batch_size, self.ranks),
            collate_fn=CaptionCollator(self.data_collator, self.args.eval_group_column),
            num_workers=self.args.dataloader_num_workers,
        )

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """As [`get_eval_dataloader`]."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """
        Retrieval in both directions over the whole data set; the predictions are the image and text embeddings.

        With `args.eval_at_view` once more at the scoring view, as `{prefix}_at_view_R@1` and so on.
        """
        reads = {"": self.learner_view}
        if self.args.eval_at_view:
            reads["at_view_"] = partial(self.learner_view, view=self.scoring_view)
        embedded = {}
        with self.accelerator.autocast():
            for name, read in reads.items():
                embedded[name] = embed_dataset(
                    read, self.model_wrapped, dataloader, self.args.device, self.loss_kind, ranks=self.ranks
                )
        metrics = {
            f"{metric_key_prefix}_{name}{metric}": value
            for name, one in embedded.items()
            for metric, value in one.metrics().items()
        }
        return EvalLoopOutput(
            predictions=(embedded[""].image.numpy(), embedded[""].text.numpy()),
            label_ids=None,
            metrics=metrics,
            num_samples=len(embedded[""].image),
        )
