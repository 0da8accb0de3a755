# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The contrastive objective of dual encoders (SigLIP, CLIP): each example is a negative of all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from jest_hf.data.collator import JESTDataCollator
from jest_hf.distributed import Ranks
from jest_hf.evaluation.pairs import CaptionCollator, Embedded, embed_dataset
from jest_hf.losses import DISTILLATION, LOSSES
from jest_hf.models import (
    DualEncoder,
    DualEncoderOutput,
    View,
    accept_views,
    base_model,
    embedding_width,
    expose_temperature,
    family_of,
    has_logit_bias,
)
from jest_hf.models.families import is_dual_encoder
from jest_hf.models.fit import check_inputs, check_loss, check_vocabulary
from jest_hf.objectives.objective import OBJECTIVES, ObjectiveOptions
from jest_hf.report.counting import flops_of_inputs, forward_flops_of
from jest_hf.selection import ContrastiveEmbeddings


class ContrastiveObjective:
    """The [`Objective`] of image-text pairs.

    Args:
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`. It may be left out of an objective that only collates.
        tile_size (`int`, *optional*): Rows of the logit matrix that the loss holds at a time.
        exchange (`str`, *optional*, defaults to `"gather"`): How ranks share embeddings: `"gather"` or `"ring"`.
        distillation_weight (`float`, *optional*, defaults to `0.0`): Weight of the distillation loss.
        views (`bool`, *optional*, defaults to `False`): Whether models must accept images at cheaper views too.
        group_column (`str`, *optional*): Column of the evaluation data; rows with equal values are hits of each other.
        eval_batch_size (`int`, *optional*): Pairs in a batch of the evaluation's loss. Default: all pairs.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.distributed import Ranks
    >>> from jest_hf.models import DualEncoderOutput
    >>> from jest_hf.objectives import ContrastiveObjective
    >>> output = DualEncoderOutput.of(torch.eye(2), torch.eye(2), torch.tensor(10.0), torch.tensor(-5.0))
    >>> round(ContrastiveObjective("sigmoid").loss(output, {}, Ranks()).item(), 4)
    0.0134

    ```
    """

    name = "contrastive"
    pairs = True
    collator_type: ClassVar[type] = JESTDataCollator
    refused: ClassVar[Mapping[str, Any]] = {"label_smoothing_factor": 0.0}
    cached_as: ClassVar[str | None] = "embeddings"

    def __init__(
        self,
        loss: str | None = None,
        *,
        tile_size: int | None = None,
        exchange: str = "gather",
        distillation_weight: float = 0.0,
        views: bool = False,
        group_column: str | None = None,
        eval_batch_size: int | None = None,
    ) -> None:
        self.loss_kind = loss
        self.tile_size = tile_size
        self.exchange = exchange
        self.distillation_weight = distillation_weight
        self.views = views
        self.group_column = group_column
        self.eval_batch_size = eval_batch_size
        self._architectures: dict[type[PretrainedConfig], type[PreTrainedModel]] = {}

    @property
    def loss_name(self) -> str:
        return self.loss_kind or self.name

    @classmethod
    def fits(cls, model: PreTrainedModel) -> bool:
        return is_dual_encoder(model)

    @classmethod
    def make(cls, model: PreTrainedModel | None, options: ObjectiveOptions) -> ContrastiveObjective:
        return cls(
            options.loss or (None if model is None else family_of(model.config).loss),
            tile_size=options.loss_tile_size,
            exchange=options.loss_exchange,
            distillation_weight=options.distillation_weight,
            views=options.views,
            group_column=options.eval_group_column,
            eval_batch_size=options.sub_batch_size,
        )

    def collator(self, processor: Any, ref_processor: Any | None, seed: int) -> JESTDataCollator:
        return JESTDataCollator(processor, ref_processor, seed=seed)

    def reader(self, model: PreTrainedModel, processor: Any, role: str, prefix: str = "") -> DualEncoder:
        reader = DualEncoder(model.config, processor, prefix)
        base: Any = base_model(model)
        self._architectures[type(model.config)] = type(base)
        if self.loss_kind is not None:
            check_loss(self.loss_kind, f"{role} ({type(model).__name__})", has_logit_bias(model))
        check_vocabulary(processor.tokenizer, model.config, role)
        self.open_up(model)
        return reader

    def open_up(self, model: PreTrainedModel) -> None:
        """Make the model's `forward` return its temperature and, with `views`, accept images at cheaper views."""
        base: Any = base_model(model)
        expose_temperature(base)
        if self.views:
            accept_views(base)

    def check_data(self, dataset: Any, collator: JESTDataCollator) -> None:
        """Check nothing: the collator skips rows with a broken image or caption."""

    def check(
        self, inputs: Mapping[str, Any], config: PretrainedConfig, role: str, labels: Tensor | None = None
    ) -> None:
        check_inputs(inputs, config, role)

    def check_metrics(self, compute_metrics: Callable[..., Any] | None) -> None:
        if compute_metrics is not None:
            raise ValueError(
                "compute_metrics needs labels, and image-text pairs have none: their evaluation computes recalls; "
                "leave it out, and compute other metrics in a callback or from trainer.predict(), which returns the "
                "embeddings."
            )

    def loss(
        self,
        output: DualEncoderOutput,
        batch: Mapping[str, Tensor],
        ranks: Ranks,
        teacher: ContrastiveEmbeddings | None = None,
    ) -> Tensor:
        kind = self._loss_kind()
        embedded = (output.image_embeds, output.text_embeds, output.logit_scale, output.logit_bias)
        how: dict[str, Any] = {"tile_size": self.tile_size, "ranks": ranks, "exchange": self.exchange}
        loss = LOSSES[kind](*embedded, **how)
        if teacher is None:
            return loss
        return loss + self.distillation_weight * DISTILLATION[kind](*embedded, teacher=teacher, **how)

    def forward_flops(self, config: PretrainedConfig, inputs: Mapping[str, Any], view: View | None = None) -> float:
        if family_of(config).towers:
            return sum(flops_of_inputs(config, inputs, view).values())
        return float(forward_flops_of(self._architectures[type(config)], config, inputs))

    def width(self, config: PretrainedConfig) -> int:
        return embedding_width(config)

    def text_length(self, collator: JESTDataCollator) -> int | None:
        return collator.texts[""].max_length

    def prediction_collator(self, collator: JESTDataCollator) -> JESTDataCollator:
        return collator  # captions are needed: without one there is no pair

    def eval_collator(self, collator: JESTDataCollator) -> CaptionCollator:
        return CaptionCollator(collator, self.group_column)

    def evaluate(
        self,
        read: Callable[..., DualEncoderOutput],
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        device: torch.device,
        ranks: Ranks,
    ) -> Embedded:
        """Evaluate retrieval in both directions; the predictions are the image and text embeddings."""
        return embed_dataset(read, model, batches, device, self._loss_kind(), ranks, self.eval_batch_size)

    def _loss_kind(self) -> str:
        if self.loss_kind is None:
            raise ValueError(
                "ContrastiveObjective needs a loss to train or evaluate; pass loss='sigmoid' or 'softmax'."
            )
        return self.loss_kind


OBJECTIVES[ContrastiveObjective.name] = ContrastiveObjective


__all__ = ["ContrastiveObjective"]
