# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A vision tower that takes several views of images in ONE forward of the whole model.

Wrapped models (DDP, ZeRO, FSDP, PEFT) must be called through their own `forward`, and a contrastive loss over examples
at different views needs all embeddings from one such call. `SiglipModel`, `Siglip2Model` and `CLIPModel` pass
`pixel_values` to the vision tower without reading them. So `pixel_values` may be a tuple, which engines treat like any
other nest of tensors:

    model(input_ids=ids, pixel_values=({"pixel_values": small, "interpolate_pos_encoding": True},
                                       {"pixel_values": full}))

The tower processes the elements one after the other and returns the pooled images of all, in their order. The modules
of the tower are called as usual, so an engine gathers their parameters and sums their gradients as usual.
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
    """Make `model.forward` accept a tuple as `pixel_values`.

    A second call has no effect, and nothing of this is saved with the model. Each element of the tuple holds the
    tower's inputs for some images: `pixel_values`, for NaFlex also `pixel_attention_mask` and `spatial_shapes`, and
    optionally
    - `interpolate_pos_encoding` (`bool`): for images smaller than the model's. It now resizes the position embeddings
      bilinearly with antialiasing, as in FlexiViT (arXiv 2212.08013) and in the training of SigLIP 2 NaFlex;
      transformers' bicubic resize skips positions when the grid shrinks. The position of CLIP's class token is not
      changed.
    - `kept_patches` (`torch.Tensor`): int64 `[n]`, indices of the patches that reach the encoder.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A `SiglipModel`, `Siglip2Model` or `CLIPModel`, not the module that an engine or an adapter wraps it in.
    """
    family = family_of(model.config)
    if family.accept_views is not None:
        family.accept_views(model)
        return
    tower: Any = model.vision_model  # of transformers, with attributes of its own
    tower.forward = MethodType(_forward_views, tower)
    if not family.patches:  # a model of patches resizes positions to each image itself
        tower.embeddings.interpolate_pos_encoding = MethodType(_positions, tower.embeddings)


def _forward_views(
    tower: Any, pixel_values: Tensor | tuple[dict[str, Any], ...], **inputs: Any
) -> BaseModelOutputWithPooling:
    """Run the tower's `forward`, once per element if `pixel_values` is a tuple."""
    if isinstance(pixel_values, Tensor):
        return type(tower).forward(tower, pixel_values, **inputs)
    pooled = [_pooled(tower, **inputs | view) for view in pixel_values]
    return BaseModelOutputWithPooling(pooler_output=torch.cat(pooled))


def _pooled(tower: Any, kept_patches: Tensor | None = None, **inputs: Any) -> Tensor:
    with _keeping(tower.embeddings, kept_patches):
        return type(tower).forward(tower, **inputs).pooler_output


@contextmanager
def _keeping(embeddings: nn.Module, kept_patches: Tensor | None) -> Iterator[None]:
    """Within this context, the vision embeddings drop all patches but these; `None` keeps all."""
    if kept_patches is None:
        yield
        return
    hook = embeddings.register_forward_hook(partial(_keep, kept_patches))
    try:
        yield
    finally:
        hook.remove()


def _keep(kept_patches: Tensor, embeddings: Any, args: tuple[Any, ...], tokens: Tensor) -> Tensor:
    n_before = tokens.shape[1] - embeddings.num_patches  # 1 in CLIP, for the class token
    return torch.cat([tokens[:, :n_before], tokens[:, n_before:].index_select(1, kept_patches)], dim=1)


def _positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """Return the position embeddings of an image of `height` x `width` pixels, `[1, tokens, D]`."""
    positions = embeddings.position_embedding(embeddings.position_ids)[0]  # a forward, so that engines gather it
    n_before = len(positions) - embeddings.num_patches
    grid = (height // embeddings.patch_size, width // embeddings.patch_size)
    return torch.cat([positions[:n_before], resize_positions(positions[n_before:], grid)])[None]


__all__ = ["accept_views"]
