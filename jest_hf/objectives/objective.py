# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The protocol of an objective (what a run trains for), and the registry of objectives.

An objective defines how a model reads a super-batch, what a model computes of it for the selection (embeddings where
examples make pairs with each other, otherwise a loss for each example), and the loss of a sub-batch. The trainer needs
nothing else of it, and an objective does not depend on the selection.

To add an objective, write a subclass of [`Objective`] and enter it:

    from jest_hf.objectives import OBJECTIVES

    OBJECTIVES[Captioning.name] = Captioning
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from jest_hf.distributed import Ranks
from jest_hf.models import View
from jest_hf.models.reader import Reader


Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


class Evaluated(Protocol):
    """The results of evaluating one model on a data set."""

    @property
    def predictions(self) -> Any:
        """An array, or a tuple of arrays, as in [`~transformers.trainer_utils.EvalPrediction`]."""

    @property
    def label_ids(self) -> np.ndarray | None:
        """The labels of the predictions; `None` without labels."""

    @property
    def n_examples(self) -> int:
        """The number of examples that were evaluated; rows that could not be read are left out."""

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name, without a prefix."""


@dataclass(frozen=True)
class ObjectiveOptions:
    """The options of a run that an objective may use, as plain values, so that scoring needs no training arguments.

    Args:
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`, for pairs. Default: the loss that the learner was
            made for.
        loss_tile_size (`int`, *optional*): Rows of the logit matrix that the loss holds at a time.
        loss_exchange (`str`, *optional*, defaults to `"gather"`): How ranks share embeddings in the loss.
        distillation_weight (`float`, *optional*, defaults to `0.0`): Weight of the distillation loss.
        label_smoothing (`float`, *optional*, defaults to `0.0`): Label smoothing of the cross-entropy.
        views (`bool`, *optional*, defaults to `False`): Whether models must accept images at cheaper views too.
        eval_group_column (`str`, *optional*): Column of the evaluation data; rows with equal values are hits of each
            other in retrieval.
        sub_batch_size (`int`, *optional*): Pairs in the sub-batch of all ranks, of which the loss of an evaluation
            makes its batches. Default: all pairs are one batch.
    """

    loss: str | None = None
    loss_tile_size: int | None = None
    loss_exchange: str = "gather"
    distillation_weight: float = 0.0
    label_smoothing: float = 0.0
    views: bool = False
    eval_group_column: str | None = None
    sub_batch_size: int | None = None


# Options that have no effect without pairs, each with the value that it must keep.
FOR_PAIRS_ALONE: Mapping[str, Any] = {
    "scoring_view": None,
    "gradient_cache_chunk_size": None,
    "reference_cache": None,
    "loss": None,
    "distillation_weight": 0.0,
    "pair_score": "loss",
    "selection_precision": "float32",
}


class Collator(Protocol):
    """A data collator: it makes n rows a super-batch, a `dict` of tensors with n rows each.

    Besides the inputs of the models, a super-batch has `example_id` (int64 `[n]`, from the rows) and `valid` (bool
    `[n]`: False for a row that cannot be used, whose values are ignored). Keys for the reference alone begin with
    `ref_`.

    Attributes:
        processor: The learner's processor.
        ref_processor (*optional*): The reference's processor, if it differs from the learner's.
        image_column (`str`, *optional*): Column of the images; `None` without images.
    """

    processor: Any
    ref_processor: Any | None
    image_column: Any

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a super-batch."""

    def with_reference(self, ref_processor: Any | None) -> Any:
        """Return the same collator, for a reference that reads with `ref_processor`."""


class Objective(Protocol):
    """What a run trains for. `OBJECTIVES` is the registry.

    A subclass inherits the defaults of an objective without pairs, without a cache and without checks. It must define
    `fits`, `make`, `collator`, `reader`, `loss`, `forward_flops`, `eval_collator` and `evaluate`, and set `name` and
    `collator_type`.

    Attributes:
        name (`str`): The value of `JESTConfig.objective` that chooses this class.
        pairs (`bool`): Whether examples make pairs, so that they can be selected jointly. Otherwise the loss is a mean
            over examples.
        loss_kind (`str`, *optional*): `"sigmoid"` or `"softmax"`, the loss of pairs; `None` without pairs.
        loss_name (`str`): The name of the loss in the model card.
        collator_type (`type`): The class of the data collators that make super-batches for this objective.
        refused (`dict`): Options of `JESTConfig` that have no effect with this objective, each with the value that it
            must keep.
        cached_as (`str`, *optional*): What `cache_reference` writes: `"embeddings"` (with a [`JESTDataCollator`]) or
            `"losses"` (with a `LabelledCollator` and a [`PointwiseReader`]); `None` if a reference cannot be cached.
    """

    name: str
    pairs: bool = False
    loss_kind: str | None = None
    collator_type: ClassVar[type]
    refused: ClassVar[Mapping[str, Any]] = FOR_PAIRS_ALONE
    cached_as: ClassVar[str | None] = None

    @property
    def loss_name(self) -> str:
        return self.loss_kind or self.name

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Return whether this is the objective of a learner when `JESTConfig.objective` is not given."""

    @classmethod
    def make(cls, model: PreTrainedModel | None, options: ObjectiveOptions) -> Objective:
        """Make the objective of a run.

        Args:
            model ([`~transformers.PreTrainedModel`], *optional*): The learner, without adapters, if there is one yet.
            options ([`ObjectiveOptions`]): Options of the run.

        Raises:
            ValueError: for a model or options that do not suit the objective.
        """

    def collator(self, processor: Any, ref_processor: Any | None, seed: int) -> Collator:
        """Make the data collator of a run that is given none.

        Args:
            processor: The learner's processor.
            ref_processor (*optional*): The reference's processor, if it differs from the learner's.
            seed (`int`): Seed of what the collator draws, such as one of several captions.
        """

    def reader(self, model: PreTrainedModel, processor: Any, role: str, prefix: str = "") -> Reader:
        """Make a model ready for steps, and return how it reads a super-batch.

        Args:
            model ([`~transformers.PreTrainedModel`]): The model, not wrapped yet; it may have adapters.
            processor: The processor of this model.
            role (`str`): `"learner"`, `"proxy"` or `"reference"`, for error messages.
            prefix (`str`, *optional*, defaults to `""`): Prefix of the keys of the super-batch that are for this model
                alone, such as `"ref_"`.

        Raises:
            ValueError: if model, processor and objective do not fit together.
        """

    def open_up(self, model: PreTrainedModel) -> None:
        """Make a learner ready for steps, as [`reader`] does: for a learner that replaces an earlier one."""

    def check_data(self, dataset: Any, collator: Any) -> None:
        """Raise a `ValueError` for training data that do not fit the model, as far as one column shows it."""

    def check(
        self, inputs: Mapping[str, Any], config: PretrainedConfig, role: str, labels: Tensor | None = None
    ) -> None:
        """Check one collated batch.

        Args:
            inputs (`dict`): What a reader makes of the batch: the arguments of the model's `forward`.
            config ([`~transformers.PretrainedConfig`]): The model's configuration.
            role (`str`): `"learner"`, `"proxy"` or `"reference"`, for error messages.
            labels (`torch.Tensor`, *optional*): The labels of the batch, if it has labels.

        Raises:
            ValueError: if the inputs do not fit the configuration, or the model's outputs do not fit the labels.
        """

    def check_metrics(self, compute_metrics: Callable[..., Any] | None) -> None:
        """Raise a `ValueError` for a `compute_metrics` that the evaluation cannot call."""

    def loss(self, output: Any, batch: Mapping[str, Tensor], ranks: Ranks, teacher: Any | None = None) -> Tensor:
        """Compute the loss of the sub-batch of all ranks, an fp32 scalar. A collective.

        Its gradients, averaged over the ranks as in data-parallel training, are those of the loss of the whole
        sub-batch.

        Args:
            output: What the learner's [`~jest_hf.models.reader.Reader`] returned for this rank's rows.
            batch (mapping of `str` to `torch.Tensor`): This rank's rows.
            ranks ([`~jest_hf.distributed.Ranks`]): The ranks that share the sub-batch.
            teacher ([`~jest_hf.batch.ContrastiveEmbeddings`], *optional*): The reference's embeddings of this rank's
                rows, to add a distillation loss (pairs only).
        """

    def forward_flops(self, config: PretrainedConfig, inputs: Mapping[str, Any], view: View | None = None) -> float:
        """Return the forward FLOPs of one example with the shapes in `inputs`, or at `view`."""

    def width(self, config: PretrainedConfig) -> int:
        """Return the width D of the embeddings that joint selection compares; 0 without pairs."""
        return 0

    def text_length(self, collator: Any) -> int | None:
        """Return the number of tokens that captions are padded to, for the model card; `None` if it is the
        processor's own."""
        return None

    def prediction_collator(self, collator: Any) -> Any:
        """Return the data collator for `Trainer.predict`: rows need not have labels."""
        return collator

    def eval_collator(self, collator: Any) -> Collate:
        """Return the collator of evaluation batches, which must accept any number of rows, also none."""

    def evaluate(
        self,
        read: Callable[..., Any],
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        device: torch.device,
        ranks: Ranks,
    ) -> Evaluated:
        """Evaluate a model on a whole data set. A collective: every rank returns the results of all rows.

        Args:
            read (`Callable`): `read(model, batch)` is one forward. The method itself puts the model in eval mode and
                switches gradients off.
            model (`torch.nn.Module`): The model, wrapped or not.
            batches (iterable): This rank's batches from [`eval_collator`], as many as every other rank's. The last
                ones can be batches of no rows.
            device (`torch.device`): The device of the model.
            ranks ([`~jest_hf.distributed.Ranks`]): The ranks that share the batches.
        """


OBJECTIVES: dict[str, type[Objective]] = {}


def find_objective(name: str | None, model: PreTrainedModel | None) -> type[Objective]:
    """Return the objective with a name; without a name, the last registered one that fits the learner.

    Args:
        name (`str`, *optional*): The value of `JESTConfig.objective`.
        model ([`~transformers.PreTrainedModel`], *optional*): The learner. Without a name and a learner the objective
            is `"contrastive"`.

    Raises:
        ValueError: for a name that is not registered.

    Example:

    ```python
    >>> from jest_hf.objectives import find_objective
    >>> find_objective("language_model", None).pairs
    False

    ```
    """
    if name is None:
        fitting = [one for one in OBJECTIVES.values() if model is not None and one.fits(model)]
        return fitting[-1] if fitting else OBJECTIVES["contrastive"]
    if name not in OBJECTIVES:
        raise ValueError(f"objective={name!r} is not known; choose one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]


__all__ = ["FOR_PAIRS_ALONE", "OBJECTIVES", "Collator", "Evaluated", "Objective", "ObjectiveOptions", "find_objective"]
