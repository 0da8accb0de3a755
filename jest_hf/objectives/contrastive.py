# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The contrastive objective of dual encoders (SigLIP, CLIP): every example is a negative of every other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from jest_hf.collator import JESTDataCollator
from jest_hf.config import JESTConfig
from jest_hf.distributed import Ranks
from jest_hf.evaluation.tasks import CaptionCollator, Embedded, embed_dataset
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
from jest_hf.report.flops import flops_of_inputs
from jest_hf.selection import ContrastiveEmbeddings
from jest_hf.validation import check_inputs, check_loss, check_vocabulary


class ContrastiveObjective:
    """
    See [`Objective`].

    Args:
        args ([`JESTConfig`]): Names the loss, and how it is computed.
        config ([`~transformers.PretrainedConfig`], *optional*): The learner's, for the loss that it was made for; not
            needed to collate.
    """

    name = "contrastive"
    pairs = True

    def __init__(self, args: JESTConfig, config: PretrainedConfig | None = None) -> None:
        self.args = args
        self.loss_kind = args.loss or (None if config is None else family_of(config).loss)

    def collator(self, processor: Any, ref_processor: Any | None, seed: int) -> JESTDataCollator:
        return JESTDataCollator(processor, ref_processor, seed=seed)

    def reader(self, model: PreTrainedModel, processor: Any, role: str, prefix: str = "") -> DualEncoder:
        reader = DualEncoder(model.config, processor, prefix)
        check_loss(self.loss_kind, f"{role} ({type(model).__name__})", has_logit_bias(model))
        check_vocabulary(processor.tokenizer, model.config, role)
        self.open_up(model)
        return reader

    def open_up(self, model: PreTrainedModel) -> None:
        """What a step needs through the forward of whatever wraps the model: its temperature, and views of images."""
        expose_temperature(base_model(model))
        if self.args.scoring_view is not None:
            accept_views(base_model(model))

    def check_data(self, dataset: Any, collator: JESTDataCollator) -> None:
        """Nothing: a broken caption is skipped when it is met."""

    def check(
        self, inputs: Mapping[str, Any], config: PretrainedConfig, role: str, labels: Tensor | None = None
    ) -> None:
        check_inputs(inputs, config, role)

    def check_metrics(self, compute_metrics: Callable[..., Any] | None) -> None:
        if compute_metrics is not None:
            raise ValueError(
                "compute_metrics is for models with labels, and an evaluation of pairs computes recalls; leave it "
                "out, and measure anything else in a callback, or with trainer.predict(), which gives the embeddings."
            )

    def loss(
        self,
        output: DualEncoderOutput,
        batch: Mapping[str, Tensor],
        ranks: Ranks,
        teacher: ContrastiveEmbeddings | None = None,
    ) -> Tensor:
        embedded = (output.image_embeds, output.text_embeds, output.logit_scale, output.logit_bias)
        how = {"tile_size": self.args.loss_tile_size, "ranks": ranks, "exchange": self.args.loss_exchange}
        loss = LOSSES[self.loss_kind](*embedded, **how)
        if teacher is None:
            return loss
        return loss + self.args.distillation_weight * DISTILLATION[self.loss_kind](*embedded, teacher=teacher, **how)

    def forward_flops(self, config: PretrainedConfig, inputs: Mapping[str, Any], view: View | None = None) -> float:
        return sum(flops_of_inputs(config, inputs, view).values())

    def width(self, config: PretrainedConfig) -> int:
        return embedding_width(config)

    def prediction_collator(self, collator: JESTDataCollator) -> JESTDataCollator:
        return collator  # without a caption there is no pair

    def eval_collator(self, collator: JESTDataCollator) -> CaptionCollator:
        return CaptionCollator(collator, self.args.eval_group_column)

    def evaluate(
        self,
        read: Callable[..., DualEncoderOutput],
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        device: torch.device,
        ranks: Ranks,
    ) -> Embedded:
        """Retrieval in both directions; the predictions are the image and text embeddings."""
        return embed_dataset(read, model, batches, device, self.loss_kind, ranks=ranks)


__all__ = ["ContrastiveObjective"]
