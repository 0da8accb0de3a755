# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny float64 dual encoders, and their gradients by one forward and one backward of everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jest_hf.losses import sigmoid_contrastive_loss, softmax_contrastive_loss
from jest_hf.models import expose_temperature
from tests.helpers import tiny_clip, tiny_siglip


MODELS = {"siglip": (tiny_siglip, sigmoid_contrastive_loss), "clip": (tiny_clip, softmax_contrastive_loss)}


def tiny_model(name: str, dropout: float = 0.0) -> tuple[PreTrainedModel, Callable[..., Tensor]]:
    """A float64 model in train mode, and its loss."""
    build, loss = MODELS[name]
    model = build().double().train()
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            layer.self_attn.dropout = dropout
    expose_temperature(model)
    return model, loss


def tiny_batch(n_rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 13, (n_rows, 8), generator=generator)
    ids[:, -1] = 2
    return {"pixel_values": torch.randn(n_rows, 3, 16, 16, generator=generator).double(), "input_ids": ids}


def forward_of(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[slice], Any]:
    return lambda rows: model(**{name: value[rows] for name, value in batch.items()})


def direct(forward: Callable[[slice], Any], chunks: list[slice], loss: Callable[..., Tensor]) -> Tensor:
    """Return the loss of all chunks, computed and back-propagated as one graph."""
    outputs = [forward(rows) for rows in chunks]
    image, text = (torch.cat([output[name] for output in outputs]) for name in ("image_embeds", "text_embeds"))
    value = loss(image, text, outputs[-1].logit_scale, outputs[-1].logit_bias)
    value.backward()
    return value.detach()


def pop_gradients(model: nn.Module) -> list[Tensor | None]:
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return gradients
