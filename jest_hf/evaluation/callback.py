# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A callback for zero-shot classification at every evaluation of a `JESTTrainer`.

The Trainer passes its dict of metrics to callbacks before it reads `metric_for_best_model` from that dict, so a metric
that is added here can select the best checkpoint. Model, device, precision and loader settings are those of the
trainer, so the callback keeps a reference to the trainer.

Images and prompts go through the model's whole forward, as in [`~jest_hf.evaluation.pairs`], since wrapped models
gather their parameters only there. The forward needs images and texts, so images are embedded together with one dummy
text, and prompts with one dummy image. All processes share the prompts and the images, make the same number of
forwards, and get the metrics of the whole data set.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jest_hf.data.captions import CAPTION_COLUMNS
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.rows import Rows, share_batches
from jest_hf.distributed import Ranks
from jest_hf.evaluation.zero_shot import DEFAULT_TEMPLATES, zero_shot_accuracy, zero_shot_classifier
from jest_hf.models import IMAGE_KEYS


class EvaluatingTrainer(Protocol):
    """The part of a [`JESTTrainer`] that the callback uses."""

    args: Any
    accelerator: Any
    data_collator: Any
    eval_dataset: Any
    model_wrapped: nn.Module

    @property
    def learner_view(self) -> Any:
        """How the learner reads a batch."""

    def log(self, logs: dict[str, float]) -> None: ...


class ZeroShotCallback(TrainerCallback):
    """Adds the metrics of zero-shot classification to every evaluation of a `JESTTrainer`.

    The metrics are `eval_zero_shot_accuracy@1`, `eval_zero_shot_accuracy@5`, `eval_zero_shot_mean_per_class_accuracy`
    and `eval_zero_shot_examples_skipped` (broken images). With several evaluation data sets they are added to the
    metrics of the first. They are not added if `metric_key_prefix` is not `"eval"`.

    Callbacks run in the order of adding: add a callback that reads these metrics, such as
    [`~transformers.EarlyStoppingCallback`], after this one.

    Args:
        trainer ([`JESTTrainer`]): Trainer of the learner.
        dataset ([`~datasets.Dataset`], torch `Dataset` or sequence of dicts): Rows with a label and an image, in the
            image column of the trainer's collator. Captions are not needed.
        class_names (sequence of `str`): Names of the `C` classes, in the order of their labels.
        templates (sequence of `str`, *optional*, defaults to [`DEFAULT_TEMPLATES`]): As in [`zero_shot_classifier`].
        label_column (`str`, *optional*, defaults to `"label"`): Column of the labels, integers from 0 to C - 1.

    Raises:
        ValueError: At construction, if the rows lack the image or the label column, or a label is not the number of a
            class; at an evaluation, if no image can be read, or as in [`zero_shot_classifier`].

    Example:

    ```python
    trainer = JESTTrainer(..., args=JESTConfig(..., metric_for_best_model="eval_zero_shot_accuracy@1"))
    trainer.add_callback(ZeroShotCallback(trainer, photographs, class_names=["dress", "shirt", "shoe"]))
    ```
    """

    def __init__(
        self,
        trainer: EvaluatingTrainer,
        dataset: datasets.Dataset | Dataset[Any] | Sequence[Mapping[str, Any]],
        class_names: Sequence[str],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        label_column: str = "label",
    ) -> None:
        self.trainer = trainer
        self.class_names = class_names
        self.templates = templates
        # Only the learner is evaluated, so the reference's inputs are not needed.
        self.collator = trainer.data_collator.with_reference(None)
        self.rows = Rows(dataset, self.collator.image_column)
        self.labels = _labels(dataset, label_column, len(class_names))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the metrics to those of an evaluation. Called by the Trainer. A collective."""
        eval_datasets = self.trainer.eval_dataset
        loss = f"eval_{next(iter(eval_datasets))}_loss" if isinstance(eval_datasets, dict) else "eval_loss"
        if metrics is not None and loss in metrics:
            found = {f"eval_zero_shot_{name}": value for name, value in self.compute().items()}
            metrics.update(found)
            # The Trainer has already logged its own metrics. log() adds the epoch to `found`.
            self.trainer.log(found)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """Compute [`zero_shot_accuracy`] of the learner and `examples_skipped`. A collective.

        The learner is left in eval mode.

        Raises:
            ValueError: On all ranks, if no image can be read.
        """
        trainer, args, ranks = self.trainer, self.trainer.args, Ranks.world()
        model = trainer.model_wrapped
        model.eval()
        batch_size = args.eval_batch_size
        batches: list[Any] = share_batches(len(self.rows), batch_size, ranks)
        loader = DataLoader(
            self.rows,
            batch_sampler=batches,
            collate_fn=_ImageCollator(self.collator),
            num_workers=args.dataloader_num_workers,
        )
        blank = self.collator.blank()

        def embed(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            output = trainer.learner_view(
                model, {name: value.to(args.device) for name, value in (blank | inputs).items()}
            )
            return output.image_embeds, output.text_embeds

        def encode_text(prompts: list[str]) -> Tensor:
            parts = [prompts[rank * batch_size : (rank + 1) * batch_size] for rank in range(ranks.size)]
            own = parts[ranks.rank]
            _, embeds = embed(self.collator.tokenize(own or [""]))
            return ranks.gather_rows(embeds[: len(own)], [len(part) for part in parts])

        with trainer.accelerator.autocast():
            class_embeds = zero_shot_classifier(
                encode_text, self.class_names, self.templates, batch_size=batch_size * ranks.size
            )
            own_images, own_labels = [], []
            for batch in loader:
                valid = batch["valid"]
                pixels = {name: value[valid] for name, value in batch.items() if name in IMAGE_KEYS}
                embeds, _ = embed(pixels if valid.any() else {})
                own_images.append(embeds[: int(valid.sum())])
                own_labels.append(self.labels[batch["example_id"][valid]].to(args.device))
        counts = ranks.gather_counts(sum(len(part) for part in own_labels), args.device)
        if not any(counts):
            raise ValueError(
                f"not one of the {len(self.rows)} images for zero-shot classification can be read; check the files in "
                f"image_column={self.collator.image_column!r}."
            )
        images, labels = (ranks.gather_rows(torch.cat(parts), counts) for parts in (own_images, own_labels))
        accuracy = zero_shot_accuracy(images, class_embeds, labels)
        return {**accuracy, "examples_skipped": len(self.rows) - len(labels)}


class _ImageCollator:
    """A [`JESTDataCollator`] for rows without captions, or for no rows at all.

    It is not a method of the callback, since loader workers would then get a copy of the trainer.
    """

    def __init__(self, collator: JESTDataCollator) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if not rows:
            return {"example_id": torch.empty(0, dtype=torch.int64), "valid": torch.empty(0, dtype=torch.bool)}
        column = self.collator.caption_column or CAPTION_COLUMNS[0]
        return self.collator([{**row, column: "unused"} for row in rows])


def _labels(dataset: Any, column: str, n_classes: int) -> Tensor:
    """Check all labels and return them, int64 `[N]`, so that a wrong label is found before training."""
    if isinstance(dataset, datasets.Dataset):
        columns = dataset.column_names
    else:
        columns = sorted(dataset[0])
    if column not in columns:
        raise ValueError(
            f"label_column={column!r} is not a column of the data for zero-shot classification (there are: "
            f"{', '.join(columns)}); set label_column to the column of the labels."
        )
    if isinstance(dataset, datasets.Dataset):
        labels = list(dataset.with_format(None)[column])
    else:
        labels = [dataset[index][column] for index in range(len(dataset))]
    wrong = [label for label in labels if not isinstance(label, numbers.Integral) or not 0 <= int(label) < n_classes]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(labels)} labels in label_column={column!r} are none of 0 to {n_classes - 1}, the "
            f"numbers of the class_names ({wrong[0]!r} is the first); drop these rows, or number the classes."
        )
    return torch.tensor(labels, dtype=torch.int64)
