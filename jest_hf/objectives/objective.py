# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run trains for, as far as a trainer that selects its examples has to know.

An objective knows how a model reads a super-batch, what a model has to say about one for the selection (embeddings
where examples make pairs with each other, losses where each stands alone), and the loss of a sub-batch. The trainer
knows none of this, and an objective knows nothing of selection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from jest_hf.distributed import Ranks
from jest_hf.models import View
from jest_hf.selection import Scored


class Reader(Protocol):
    """How one model (learner, proxy or reference) reads a super-batch."""

    def inputs(
        self,
        batch: Mapping[str, Tensor],
        rows: slice = slice(None),
        view: View | None = None,
        n_at_view: int | None = None,
    ) -> dict[str, Any]:
        """Arguments of the model's `forward` for some rows of a super-batch."""

    def __call__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        rows: slice = slice(None),
        view: View | None = None,
        n_at_view: int | None = None,
    ) -> Any:
        """One forward of the model, wrapped or not, over these rows, with its graph."""

    def score(
        self, model: nn.Module, batch: Mapping[str, Tensor], batch_size: int, view: View | None = None
    ) -> Scored:
        """What the model has to say about a whole super-batch, without gradients and in eval mode."""


class Evaluated(Protocol):
    """A data set as one model sees it."""

    predictions: Any
    label_ids: np.ndarray | None
    n_examples: int

    def metrics(self) -> dict[str, float]: ...


class Objective(Protocol):
    """
    What a run trains for.

    Attributes:
        loss_kind (`str`, *optional*): `"sigmoid"` or `"softmax"` where there are pairs.
        name (`str`): As in `JESTConfig.objective`.
        pairs (`bool`): Whether examples make pairs, so that they can be selected jointly.
    """

    loss_kind: str | None
    name: str
    pairs: bool

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


__all__ = ["Evaluated", "Objective", "Reader"]
