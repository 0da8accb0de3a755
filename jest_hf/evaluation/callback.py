# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Zero-shot classification at every evaluation of a `JESTTrainer`.

The Trainer hands its callbacks the very dict of metrics from which it then takes `metric_for_best_model`: what is
written into it here can select the best checkpoint. Everything else (model, device, precision, loading) is the
trainer's own, which is why the callback holds the trainer.

Images and prompts go through the model's own forward, as in [`~evaluation.tasks`]: wrapped models gather their
parameters only there. It needs both kinds, so each is embedded beside a single dummy of the other. Several processes
share both the prompts and the images, in equal numbers of forwards, and all of them get the figures of one process.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback

from jest_hf.data.captions import CAPTION_COLUMNS
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.rows import Rows, share_batches
from jest_hf.distributed import Ranks
from jest_hf.evaluation.zero_shot import DEFAULT_TEMPLATES, zero_shot_accuracy, zero_shot_classifier
from jest_hf.models import IMAGE_KEYS, DualEncoderOutput


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
    """
    Adds `eval_zero_shot_accuracy@1`, `eval_zero_shot_accuracy@5`, `eval_zero_shot_mean_per_class_accuracy` and
    `eval_zero_shot_examples_skipped` (broken images) to the metrics of every evaluation.

    Of several evaluation data sets it goes with the first, and with none whose metrics do not start with `eval`.
    Callbacks run in the order of adding: one that reads these metrics, such as
    [`~transformers.EarlyStoppingCallback`], has to be added after this one.

    Args:
        trainer ([`JESTTrainer`]): whose learner is evaluated.
        dataset ([`~datasets.Dataset`], torch `Dataset` or sequence of dicts): rows with an image, in the column that
            the trainer's collator reads, and a label. They need no caption.
        class_names (sequence of `str`): names of the `C` classes, in the order of their labels.
        templates (sequence of `str`, *optional*, defaults to [`DEFAULT_TEMPLATES`]): as in [`zero_shot_classifier`].
        label_column (`str`, *optional*, defaults to `"label"`): column of the labels, integers from 0 to C - 1.

    Raises:
        ValueError: here if the rows lack the image or the label column, or a label is not the number of a class; at an
            evaluation if no image can be read, or as [`zero_shot_classifier`].

    Example:

    ```python
    trainer = JESTTrainer(..., args=JESTConfig(..., metric_for_best_model="eval_zero_shot_accuracy@1"))
    trainer.add_callback(ZeroShotCallback(trainer, photographs, class_names=["dress", "shirt", "shoe"]))
    ```
    """

    def __init__(
        self,
        trainer: EvaluatingTrainer,
        dataset: datasets.Dataset | Dataset | Sequence[Mapping[str, Any]],
        class_names: Sequence[str],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        label_column: str = "label",
    ) -> None:
        self.trainer = trainer
        self.class_names = class_names
        self.templates = templates
        # The reference is not asked: its views of the images need not be made.
        self.collator = trainer.data_collator.with_reference(None)
        self.rows = Rows(dataset, self.collator.image_column)
        self.labels = _labels(dataset, label_column, len(class_names))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        several = self.trainer.eval_dataset
        loss = f"eval_{next(iter(several))}_loss" if isinstance(several, dict) else "eval_loss"
        if loss in metrics:
            found = {f"eval_zero_shot_{name}": value for name, value in self.compute().items()}
            metrics.update(found)
            # The Trainer has logged its own metrics by now, and log() adds the epoch to what it is given.
            self.trainer.log(found)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The learner's [`zero_shot_accuracy`] now, and `examples_skipped`; leaves it in eval mode. A collective."""
        trainer, args, ranks = self.trainer, self.trainer.args, Ranks.world()
        model = trainer.model_wrapped
        model.eval()
        batch_size = args.eval_batch_size
        loader = DataLoader(
            self.rows,
            batch_sampler=share_batches(len(self.rows), batch_size, ranks),
            collate_fn=_ImageCollator(self.collator),
            num_workers=args.dataloader_num_workers,
        )
        blank = self.collator.blank()

        def forward(inputs: dict[str, Tensor]) -> DualEncoderOutput:
            return trainer.learner_view(
                model, {name: value.to(args.device) for name, value in (blank | inputs).items()}
            )

        def encode_text(prompts: list[str]) -> Tensor:
            parts = [prompts[rank * batch_size : (rank + 1) * batch_size] for rank in range(ranks.size)]
            own = parts[ranks.rank]
            embeds = forward(self.collator.tokenize(own or [""])).text_embeds
            return ranks.gather_rows(embeds[: len(own)], [len(part) for part in parts])

        with trainer.accelerator.autocast():
            class_embeds = zero_shot_classifier(
                encode_text, self.class_names, self.templates, batch_size=batch_size * ranks.size
            )
            images, labels = [], []
            for batch in loader:
                valid = batch["valid"]
                pixels = {name: value[valid] for name, value in batch.items() if name in IMAGE_KEYS}
                embeds = forward(pixels if valid.any() else {}).image_embeds
                images.append(embeds[: int(valid.sum())])
                labels.append(self.labels[batch["example_id"][valid]].to(args.device))
        counts = ranks.gather_counts(sum(len(part) for part in labels), args.device)
        if not any(counts):
            raise ValueError(
                f"not one of the {len(self.rows)} images for zero-shot classification can be read; check the column "
                f"{self.collator.image_column!r}."
            )
        image, labels = (ranks.gather_rows(torch.cat(parts), counts) for parts in (images, labels))
        accuracy = zero_shot_accuracy(image, class_embeds, labels)
        return {**accuracy, "examples_skipped": len(self.rows) - len(labels)}


class _ImageCollator:
    """
    A [`JESTDataCollator`] for rows without captions, apart from the callback because workers get a copy of it. Of no
    rows it makes none.
    """

    def __init__(self, collator: JESTDataCollator) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if not rows:
            return {"example_id": torch.empty(0, dtype=torch.int64), "valid": torch.empty(0, dtype=torch.bool)}
        column = self.collator.caption_column or CAPTION_COLUMNS[0]
        return self.collator([{**row, column: "unused"} for row in rows])


def _labels(dataset: Any, column: str, n_classes: int) -> Tensor:
    """All labels, int64 `[N]`, checked: a wrong one should not wait for the first evaluation."""
    if isinstance(dataset, datasets.Dataset):
        columns = dataset.column_names
    else:
        columns = sorted(dataset[0])
    if column not in columns:
        raise ValueError(
            f"label_column={column!r} is not a column of the data for zero-shot classification; it has "
            f"{', '.join(columns)}."
        )
    if isinstance(dataset, datasets.Dataset):
        labels = list(dataset.with_format(None)[column])
    else:
        labels = [dataset[index][column] for index in range(len(dataset))]
    wrong = [label for label in labels if not isinstance(label, numbers.Integral) or not 0 <= label < n_classes]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(labels)} labels in label_column={column!r} are none of 0 to {n_classes - 1}, the "
            f"numbers of the class_names ({wrong[0]!r} is the first): leave these rows out, or number the classes."
        )
    return torch.tensor(labels, dtype=torch.int64)
