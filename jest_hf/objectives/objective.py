# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run trains for, as far as a trainer that selects its examples has to know.

An objective knows how a model reads a super-batch, what a model has to say about one for the selection (embeddings
where examples make pairs with each other, losses where each stands alone), and the loss of a sub-batch. The trainer
knows none of this, and an objective knows nothing of selection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from jest_hf.distributed import Ranks
from jest_hf.models import View
from jest_hf.models.reader import Reader
from jest_hf.selection import Scored


class Evaluated(Protocol):
    """A data set as one model sees it."""

    predictions: Any
    label_ids: np.ndarray | None
    n_examples: int

    def metrics(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class ObjectiveOptions:
    """
    The options of a run that an objective may use, as plain values: no training arguments are needed to score.

    Args:
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`, for pairs. Default: the loss that the learner was
            made for.
        loss_tile_size (`int`, *optional*): Rows of the logit matrix that the loss holds at a time.
        loss_exchange (`str`, *optional*, defaults to `"gather"`): How ranks share embeddings in the loss.
        distillation_weight (`float`, *optional*, defaults to `0.0`): Weight of the distillation loss.
        label_smoothing (`float`, *optional*, defaults to `0.0`): Of the cross-entropy.
        views (`bool`, *optional*, defaults to `False`): Whether models have to see images at cheaper views too.
        eval_group_column (`str`, *optional*): Column whose equal values are hits of each other in retrieval.
    """

    loss: str | None = None
    loss_tile_size: int | None = None
    loss_exchange: str = "gather"
    distillation_weight: float = 0.0
    label_smoothing: float = 0.0
    views: bool = False
    eval_group_column: str | None = None


class Objective(Protocol):
    """
    What a run trains for. `OBJECTIVES` is the registry, by the value of `JESTConfig.objective`.

    Attributes:
        name (`str`): As in `JESTConfig.objective`.
        pairs (`bool`): Whether examples make pairs, so that they can be selected jointly. Otherwise the loss is a mean
            over examples.
        loss_kind (`str`, *optional*): `"sigmoid"` or `"softmax"` where there are pairs.
        collator_type (`type`): The class of the data collators that make super-batches for this objective.
        refused (`dict`): Options of `JESTConfig` that have no use with this objective, with the value that each must
            keep.
        cached_as (`str`, *optional*): What `cache_reference` writes: `"embeddings"`, `"losses"`, or `None` where a
            reference cannot be cached.
    """

    name: str
    pairs: bool
    loss_kind: str | None
    collator_type: ClassVar[type]
    refused: ClassVar[Mapping[str, Any]]
    cached_as: ClassVar[str | None]

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        """Whether a learner is made for this objective, where `JESTConfig.objective` is not given."""

    @classmethod
    def make(cls, model: PreTrainedModel | None, options: ObjectiveOptions) -> Objective:
        """
        Make the objective of a run.

        Args:
            model ([`~transformers.PreTrainedModel`], *optional*): The learner, without adapters, if there is one yet.
            options ([`ObjectiveOptions`]): Options of the run.

        Raises:
            ValueError: for a model or options that do not suit the objective.
        """

    def collator(self, processor: Any, ref_processor: Any | None, seed: int) -> Callable[[list[dict]], dict]:
        """The data collator of a run that brings none."""

    def reader(self, model: PreTrainedModel, processor: Any, role: str, prefix: str = "") -> Reader:
        """
        How `model` reads a super-batch; makes the model ready for it.

        Args:
            model ([`~transformers.PreTrainedModel`]): Not wrapped yet; it may carry adapters.
            processor: The model's own.
            role (`str`): `"learner"`, `"proxy"` or `"reference"`, for messages.
            prefix (`str`, *optional*, defaults to `""`): Of the model's own keys in the super-batch.

        Raises:
            ValueError: if model, processor and objective do not fit together.
        """

    def open_up(self, model: PreTrainedModel) -> None:
        """Make a learner ready for steps: a part of [`reader`], for one that takes the place of another."""

    def check_data(self, dataset: Any, collator: Any) -> None:
        """Raise a `ValueError` for rows that do not fit the model, as far as a glance at a column shows."""

    def check(
        self, inputs: Mapping[str, Any], config: PretrainedConfig, role: str, labels: Tensor | None = None
    ) -> None:
        """
        Raise a `ValueError` if what a reader makes of a collated batch does not fit the model's configuration, or what
        the model makes of it not the batch's `labels`, where there are any.
        """

    def check_metrics(self, compute_metrics: Callable[..., Any] | None) -> None:
        """Raise a `ValueError` for a `compute_metrics` that the evaluation could not call."""

    def loss(self, output: Any, batch: Mapping[str, Tensor], ranks: Ranks, teacher: Scored | None = None) -> Tensor:
        """
        The loss of the sub-batch of all ranks, an fp32 scalar, from this rank's rows: `output` of [`Reader`] for
        them. Its gradients, averaged over the ranks as data-parallel training does, are those of the whole. With a
        `teacher`'s word on the same rows a distillation loss is added (pairs only).
        """

    def forward_flops(self, config: PretrainedConfig, inputs: Mapping[str, Any], view: View | None = None) -> float:
        """Forward FLOPs of one example, of the shapes in `inputs` (or at `view`)."""

    def width(self, config: PretrainedConfig) -> int:
        """Numbers that a joint draw compares of each example; 0 where there are no pairs."""

    def text_length(self, collator: Any) -> int | None:
        """Tokens that captions are padded to, for the model card; `None` where the processor says so itself."""

    def prediction_collator(self, collator: Any) -> Any:
        """The data collator, for rows that need not have what a model predicts."""

    def eval_collator(self, collator: Any) -> Callable[[list[dict]], dict]:
        """Makes evaluation batches of rows, of any number of them: an empty list too."""

    def evaluate(
        self,
        read: Callable[..., Any],
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        device: torch.device,
        ranks: Ranks,
    ) -> Evaluated:
        """The whole data set, whose batches the ranks share, on every rank: the same as of one process."""


OBJECTIVES: dict[str, type[Objective]] = {}


def find_objective(name: str | None, model: PreTrainedModel | None) -> type[Objective]:
    """
    Find the objective with a name, or the one that a learner is made for; the last one registered that fits.

    Raises:
        ValueError: for a name that is not registered.
    """
    if name is None:
        fitting = [one for one in OBJECTIVES.values() if model is not None and one.fits(model)]
        return fitting[-1] if fitting else OBJECTIVES["contrastive"]
    if name not in OBJECTIVES:
        raise ValueError(f"objective={name!r} is not known; choose one of {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]


__all__ = ["OBJECTIVES", "Evaluated", "Objective", "ObjectiveOptions", "find_objective"]
