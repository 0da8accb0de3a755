# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The families of dual encoders: all differences between SigLIP, SigLIP 2 and CLIP.

`FAMILIES` is the registry, by the `model_type` of a configuration. No other file compares a model type. To add a
family whose `forward` takes `pixel_values` and `input_ids` and returns `image_embeds` and `text_embeds`, add an entry:

    from jest_hf.models import FAMILIES, Family

    FAMILIES["my_dual_encoder"] = Family("my_dual_encoder", loss="sigmoid", attention_mask=False, views=())
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from jest_hf.images.views import View


def _projection_size(config: Any) -> int:
    return config.text_config.projection_size


def _projection_dim(config: Any) -> int:
    return config.projection_dim


@dataclass(frozen=True)
class Family:
    """The properties that the models of one `model_type` share.

    A configuration of the family has a `vision_config` (with `image_size`, unless images come as patches) and a
    `text_config` (with `max_position_embeddings` and `vocab_size`). A model of the family has a parameter
    `logit_scale`, the logarithm of the multiplier, and may have a parameter `logit_bias`.

    Args:
        model_type (`str`): The `model_type` of the model's configuration.
        loss (`str`): `"sigmoid"` or `"softmax"`: the loss that the models were trained with, which is the default loss
            of a run.
        attention_mask (`bool`): Whether the text tower takes an attention mask.
        patches (`bool`, *optional*, defaults to `False`): Whether images come as patches, as for SigLIP 2 NaFlex.
        width (`Callable`, *optional*): Maps the configuration to the width D of the embeddings. Default:
            `config.text_config.projection_size`.
        views (tuple of `str`, *optional*): Kinds of [`View`] that the vision tower accepts; `()` for none.
        accept_views (`Callable`, *optional*): Makes a model of the family accept views. Default: the code of
            [`~jest_hf.models.accept_views`], which fits SigLIP and CLIP.
        largest_scale (`float`, *optional*): Upper limit of the multiplier, as for CLIP (arXiv 2103.00020, section
            2.5). Default: no limit.
        towers (`bool`, *optional*, defaults to `False`): Whether `AutoModel` knows the model class and the class has
            `get_image_features` and `get_text_features`. Then FLOPs are counted tower by tower, at any view. Otherwise
            the FLOPs of the whole `forward` are counted.
    """

    model_type: str
    loss: str
    attention_mask: bool
    patches: bool = False
    width: Callable[[Any], int] = _projection_size
    views: tuple[str, ...] = ()
    accept_views: Callable[[PreTrainedModel], None] | None = None
    largest_scale: float | None = None
    towers: bool = False


_SQUARE_VIEWS = ("patch", "image", "drop")

# SigLIP and SigLIP 2 were trained without a text mask, with attention to the padding (arXiv 2303.15343, 2502.14786).
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("siglip", loss="sigmoid", attention_mask=False, views=_SQUARE_VIEWS, towers=True),
        Family("siglip2", loss="sigmoid", attention_mask=False, patches=True, views=("num_patches",), towers=True),
        Family(
            "clip",
            loss="softmax",
            attention_mask=True,
            width=_projection_dim,
            views=_SQUARE_VIEWS,
            largest_scale=100.0,
            towers=True,
        ),
    )
}


def is_dual_encoder(model: PreTrainedModel) -> bool:
    """Return whether the model has both towers; a classifier made of one tower has the same `model_type`."""
    return model.config.model_type in FAMILIES and hasattr(model, "logit_scale")


def embeds_pairs(model: Any) -> bool:
    """Return whether a model, or its class, is a dual encoder of any family, supported or not."""
    return all(hasattr(model, name) for name in ("get_image_features", "get_text_features"))


def family_of(config: Any) -> Family:
    """Return the [`Family`] of a model configuration.

    Raises:
        ValueError: for a model type that is no supported dual encoder.

    Example:

    ```python
    >>> from transformers import SiglipConfig
    >>> from jest_hf.models import embedding_width, family_of
    >>> family_of(SiglipConfig()).loss, embedding_width(SiglipConfig())
    ('sigmoid', 768)

    ```
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model_type={config.model_type!r} is not a supported dual encoder; use one of {', '.join(FAMILIES)} "
            "(SiglipModel, Siglip2Model, CLIPModel), or register the family in jest_hf.models.FAMILIES."
        )
    return FAMILIES[config.model_type]


def embedding_width(config: Any) -> int:
    """Return the width D of image and text embeddings."""
    return family_of(config).width(config)


def check_view(view: View, config: Any) -> None:
    """Check that a model with this configuration accepts a view, and that the view saves tokens.

    Args:
        view ([`View`]): The view.
        config: The model's configuration.

    Raises:
        ValueError: for a view of another kind of model, sizes that do not divide, or a view that saves no tokens.

    Example:

    ```python
    >>> from transformers import SiglipConfig
    >>> from jest_hf.models import View, check_view
    >>> check_view(View.parse("patch:32"), SiglipConfig())
    >>> check_view(View.parse("num_patches:64"), SiglipConfig())
    Traceback (most recent call last):
    ValueError: view 'num_patches:64' does not suit a siglip model: use patch, image or drop.

    ```
    """
    kinds = family_of(config).views
    if view.kind not in kinds:
        way_out = f"use {_one_of(kinds)}" if kinds else "leave scoring_view out"
        raise ValueError(f"view '{view}' does not suit a {config.model_type} model: {way_out}.")
    view.check_size(config.vision_config)


def has_logit_bias(model: nn.Module) -> bool:
    """Return whether the model has a logit bias, as SigLIP has and CLIP has not."""
    return any(name.rpartition(".")[2] == "logit_bias" for name, _ in model.named_parameters())


def without_temperature(names: Iterable[str]) -> list[str]:
    """Return the names of parameters without those of a dual encoder's `logit_scale`."""
    return [name for name in names if name.rpartition(".")[2] != "logit_scale"]


def _one_of(kinds: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))


__all__ = [
    "FAMILIES",
    "Family",
    "check_view",
    "embedding_width",
    "embeds_pairs",
    "family_of",
    "has_logit_bias",
    "is_dual_encoder",
    "without_temperature",
]
