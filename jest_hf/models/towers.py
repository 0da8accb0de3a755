# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A vision tower that takes several views of images in ONE forward of the whole model.

Wrapped models (DDP, ZeRO, FSDP, PEFT) must be entered through their own `forward`, and a contrastive loss over
examples at different views wants all embeddings of one such call. `SiglipModel`, `Siglip2Model` and `CLIPModel` hand
their `pixel_values` on to the vision tower unread. So they may as well be a tuple, which engines carry like any other
nest of tensors:

    model(input_ids=ids, pixel_values=({"pixel_values": small, "interpolate_pos_encoding": True},
                                       {"pixel_values": full}))

The tower goes through the elements one after the other and returns the pooled images of all, in their order. Its
modules run as they always do, so parameters are gathered, and gradients summed, by whoever does that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from jest_hf.images.resize import resize_positions
from jest_hf.models.families import family_of


def accept_views(model: PreTrainedModel) -> None:
    """
    Let `model.forward` take a tuple as its `pixel_values`. Harmless when called twice; nothing of it is saved.

    Each element holds the tower's inputs for some images: `pixel_values`, for NaFlex `pixel_attention_mask` and
    `spatial_shapes`, and optionally
    - `interpolate_pos_encoding` (`bool`): for images smaller than the model's own. From now on it resizes the position
      embeddings bilinearly with antialiasing, as FlexiViT does (arXiv 2212.08013), and as SigLIP 2 NaFlex was trained:
      transformers' own bicubic resize skips positions when the grid shrinks. The position of CLIP's class token stays
      as it is.
    - `kept_patches` (`torch.Tensor`): int64 `[n]`, indices of the patches that go on to the encoder.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A `SiglipModel`, `Siglip2Model` or `CLIPModel`, not what an engine or an adapter wraps it in.
    """
    family = family_of(model.config)
    if family.accept_views is not None:
        family.accept_views(model)
        return
    tower = model.vision_model
    tower.forward = MethodType(_forward_views, tower)
    if not family.patches:  # with patches a model resizes positions to each image by itself
        tower.embeddings.interpolate_pos_encoding = MethodType(_positions, tower.embeddings)


def _forward_views(
    tower: nn.Module, pixel_values: Tensor | tuple[dict[str, Any], ...], **inputs: Any
) -> BaseModelOutputWithPooling:
    """The tower's `forward`, or the pooled outputs of several."""
    if isinstance(pixel_values, Tensor):
        return type(tower).forward(tower, pixel_values, **inputs)
    pooled = [_pooled(tower, **inputs | view) for view in pixel_values]
    return BaseModelOutputWithPooling(pooler_output=torch.cat(pooled))


def _pooled(tower: nn.Module, kept_patches: Tensor | None = None, **inputs: Any) -> Tensor:
    with _keeping(tower.embeddings, kept_patches):
        return type(tower).forward(tower, **inputs).pooler_output


@contextmanager
def _keeping(embeddings: nn.Module, kept_patches: Tensor | None) -> Iterator[None]:
    """Within, the vision embeddings drop all patches but these; `None` keeps all."""
    if kept_patches is None:
        yield
        return
    hook = embeddings.register_forward_hook(partial(_keep, kept_patches))
    try:
        yield
    finally:
        hook.remove()


def _keep(kept_patches: Tensor, embeddings: nn.Module, args: tuple, tokens: Tensor) -> Tensor:
    n_before = tokens.shape[1] - embeddings.num_patches  # the class token, in CLIP
    return torch.cat([tokens[:, :n_before], tokens[:, n_before:].index_select(1, kept_patches)], dim=1)


def _positions(embeddings: nn.Module, tokens: Tensor, height: int, width: int) -> Tensor:
    """Position embeddings of an image of `height` x `width` pixels, `[1, tokens, width]`."""
    positions = embeddings.position_embedding(embeddings.position_ids)[0]  # its forward, where engines gather it
    n_before = len(positions) - embeddings.num_patches
    grid = (height // embeddings.patch_size, width // embeddings.patch_size)
    return torch.cat([positions[:n_before], resize_positions(positions[n_before:], grid)])[None]


__all__ = ["accept_views"]
