# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a model, counted from its operations.

A model without values (on the meta device, shapes alone) runs on one example under PyTorch's FLOP counter: its
forward, or forward and backward. That gives the exact FLOPs of any dual encoder, tower by tower, and of any model with
labels (`Trainer.total_flos` counts one tower only). The backward is run where the rule of three forwards does not
hold: with an adapter, with frozen weights, with gradient checkpointing.

Only matrix products and convolutions are counted, with two FLOPs for a multiply-add. Making the images of a view is
left out (0.02 % of the forward of a ViT-B).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from jest_hf.batch import TEXT_KEYS
from jest_hf.models import View, accept_views, add_adapter, base_model, has_adapter
from jest_hf.models.families import check_view, family_of
from jest_hf.models.sharding import built_whole


def forward_flops(
    model: PreTrainedModel | PretrainedConfig,
    image_size: int | None = None,
    text_length: int | None = None,
    *,
    num_patches: int | None = None,
    view: View | None = None,
) -> dict[str, int]:
    """Count the forward FLOPs of one image and of one text, each through its tower and projection.

    Args:
        model (`PreTrainedModel` or `PretrainedConfig`):
            A `SiglipModel`, `Siglip2Model` (NaFlex) or `CLIPModel`, or the configuration of one. Weights are not used.
        image_size (`int`, *optional*, defaults to the size in the configuration):
            Height and width of the image in pixels.
        text_length (`int`, *optional*, defaults to the longest text that the model takes):
            Tokens of the text, padding included.
        num_patches (`int`, *optional*, defaults to the number in the configuration):
            For a NaFlex model, in place of `image_size`: patches of the image, padding included.
        view ([`~jest_hf.images.views.View`], *optional*):
            In place of `image_size` and `num_patches`: a cheaper view of an image of the configuration's size.

    Returns:
        `dict[str, int]`: FLOPs under `"image"` and `"text"`; their sum is the F of [`step_flops`].

    Raises:
        ValueError: If `image_size` is given for a NaFlex model, or `num_patches` for any other model, if the model
            does not support `view`, or if `view` is given together with a size.

    Example:

    ```python
    >>> from transformers import SiglipConfig
    >>> from jest_hf.report import forward_flops
    >>> flops = forward_flops(SiglipConfig())  # ViT-B/16 at 224 pixels, 64 tokens
    >>> {tower: f"{value / 1e9:.1f} GFLOPs" for tower, value in flops.items()}
    {'image': '35.4 GFLOPs', 'text': '11.0 GFLOPs'}

    ```
    """
    config = _eager(model.config if isinstance(model, PreTrainedModel) else model)
    architecture: Any = MODEL_MAPPING[type(config)]
    with built_whole(), torch.device("meta"):
        meta_model = architecture(config).eval()
        accept_views(meta_model)
        images, texts = _tower_inputs(config, image_size, text_length, num_patches, view)
        return {
            "image": _count(meta_model.get_image_features, images),
            "text": _count(meta_model.get_text_features, texts),
        }


def _tower_inputs(
    config: Any, image_size: int | None, text_length: int | None, num_patches: int | None, view: View | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the inputs of the image tower and of the text tower for one example, on the current device (meta)."""
    vision = config.vision_config
    takes_patches = family_of(config).patches
    if takes_patches and image_size is not None:
        raise ValueError(f"image_size={image_size} has no meaning for a NaFlex model; pass num_patches.")
    if num_patches is not None and not takes_patches:
        raise ValueError(f"num_patches={num_patches} has a meaning for NaFlex models only; pass image_size.")
    if view is not None:
        check_view(view, config)
        if image_size is not None or num_patches is not None:
            raise ValueError(
                f"view '{view}' is made from the model's image size; leave out image_size and num_patches."
            )
        if takes_patches:
            num_patches = int(view.value)

    length = config.text_config.max_position_embeddings if text_length is None else text_length
    texts = {"input_ids": torch.zeros(1, length, dtype=torch.int64)}
    images: dict[str, Any]
    if takes_patches:
        patches = vision.num_patches if num_patches is None else num_patches
        images = {
            "pixel_values": torch.zeros(1, patches, vision.num_channels * vision.patch_size**2),
            "pixel_attention_mask": None,  # padding costs as much as other patches, masked or not
            "spatial_shapes": torch.tensor([[1, patches]], device="cpu"),  # its values are read
        }
    else:
        size = vision.image_size if image_size is None else image_size
        images = {"pixel_values": torch.zeros(1, vision.num_channels, size, size)}
        if view is not None:
            images = _shapes_of(view, images["pixel_values"].shape, vision)
        elif size != vision.image_size:
            images["interpolate_pos_encoding"] = True
    return {"pixel_values": (images,)}, texts


def _sizes_of(inputs: Mapping[str, Any], view: View | None) -> dict[str, Any]:
    """Return the sizes of the inputs of a dual encoder's `forward`, as arguments of [`forward_flops`]."""
    pixels = inputs["pixel_values"]
    sizes: dict[str, Any] = {"image_size": None, "num_patches": None}
    if view is None:
        sizes["num_patches" if pixels.dim() == 3 else "image_size"] = pixels.shape[1 if pixels.dim() == 3 else -1]
    return {**sizes, "text_length": inputs["input_ids"].shape[1], "view": view}


def flops_of_inputs(config: PretrainedConfig, inputs: Mapping[str, Any], view: View | None = None) -> dict[str, int]:
    """Count as [`forward_flops`] does, with the sizes of the inputs of a dual encoder's `forward`, or at a view."""
    return forward_flops(config, **_sizes_of(inputs, view))


def forward_flops_of(
    architecture: type[PreTrainedModel], config: PretrainedConfig, inputs: Mapping[str, Any], n_images: int = 1
) -> int:
    """Count the forward FLOPs of ONE example of any model.

    Args:
        architecture (`type[PreTrainedModel]`): Class of the model, such as `ViTForImageClassification`.
        config (`PretrainedConfig`): Configuration of the model.
        inputs (`dict`): Arguments of the model's `forward`, for any number of examples. Only shapes and dtypes of
            tensors are used.
        n_images (`int`, *optional*, defaults to 1): Number of images for the one text of a dual encoder.

    Returns:
        `int`: The F of [`step_flops`]. Padding is counted, since it costs as much as text.

    Raises:
        RuntimeError: If the forward of the model depends on values.

    Example:

    ```python
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from jest_hf.report import forward_flops_of
    >>> config = LlamaConfig(
    ...     vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> flops = forward_flops_of(LlamaForCausalLM, config, {"input_ids": torch.zeros(4, 8, dtype=torch.int64)})
    >>> f"{flops / 1e3:.1f} kFLOPs"
    '70.7 kFLOPs'

    ```
    """
    config = _eager(config)
    with _without_values():
        return _count(architecture(config).train(False), _one(inputs, n_images))


def tower_flops_of(
    architecture: type[PreTrainedModel], config: PretrainedConfig, inputs: Mapping[str, Any]
) -> dict[str, int]:
    """Count the forward FLOPs of one image and of one text of a dual encoder whose towers cannot be run one by one.

    Args:
        architecture, config, inputs: As in [`forward_flops_of`]. Inputs other than `input_ids` and `attention_mask`
            belong to images.

    Returns:
        `dict[str, int]`: FLOPs under `"image"` and `"text"`. Their sum is the result of [`forward_flops_of`].
    """
    one = forward_flops_of(architecture, config, inputs)
    image = forward_flops_of(architecture, config, inputs, n_images=2) - one
    return {"image": image, "text": one - image}


def _shapes_of(view: View, shape: torch.Size, vision: Any) -> dict[str, Any]:
    """Return inputs of the image tower at a view, on the meta device. The view is made on the CPU, with values."""
    images = view.images({"pixel_values": torch.zeros(shape, device="cpu")}, vision)
    return {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in images.items()}


def _eager(config: Any) -> Any:
    """Return a copy of a configuration whose model consists of plain matrix products."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # fused kernels are not counted on every platform
    # For mixtures of experts: the other implementations read values, or need bfloat16.
    config._experts_implementation = "batched_mm"
    return config


@contextmanager
def _without_values() -> Iterator[None]:
    """Within this context, tensors have shapes alone. Of fake tensors transformers does not read values either (of a
    mask, for instance)."""
    with built_whole(), FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta"):
        yield


def _one(inputs: Mapping[str, Any], n_images: int = 1) -> dict[str, Any]:
    """Return inputs of the same shapes for one example."""
    return {
        name: torch.empty((1 if name in TEXT_KEYS else n_images, *value.shape[1:]), dtype=value.dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }


def _count(function: Callable[..., Any], inputs: Mapping[str, Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(**inputs)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Trained:
    """What an update changes of a model, as far as its FLOPs depend on it.

    Args:
        adapter (`peft.PeftConfig`, *optional*): The adapter that is trained.
        names (set of `str`, *optional*): Names of the parameters with gradients. Default: all, or those that the
            adapter leaves open.
        checkpointing (`dict`, *optional*): Arguments of `torch.utils.checkpoint`, if activations are checkpointed.
    """

    adapter: Any = None
    names: frozenset[str] | None = None
    checkpointing: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, model: nn.Module, checkpointing: Mapping[str, Any] | None = None) -> Trained:
        """Return what is trained of a model now: parameters that are frozen later count as trained."""
        adapter = model.peft_config[model.active_adapter] if has_adapter(model) else None
        names = {name for name, value in model.named_parameters() if value.requires_grad}
        if adapter is None and len(names) == len(list(model.parameters())):
            return cls(checkpointing=checkpointing)
        # torch.compile puts its own name before all names.
        return cls(adapter, frozenset(name.replace("_orig_mod.", "") for name in names), checkpointing)

    @property
    def is_whole(self) -> bool:
        """Whether all weights are trained and all activations kept: an update then costs three forwards."""
        return self == Trained()

    def applied_to(self, model: PreTrainedModel) -> nn.Module:
        """Put the adapter on a model without values, freeze what is frozen, and switch checkpointing on."""
        whole = model if self.adapter is None else add_adapter(model, copy.deepcopy(self.adapter))
        if self.names is not None:
            for name, value in whole.named_parameters():
                value.requires_grad_(name in self.names)
        whole.train()
        if self.checkpointing is not None:
            # transformers has renamed the method.
            switch: Any = getattr(model, "activation_checkpointing_enable", None)
            (switch or model.gradient_checkpointing_enable)(dict(self.checkpointing) or None)
        return whole


def update_flops(
    config: PretrainedConfig,
    inputs: Mapping[str, Any],
    trained: Trained,
    view: View | None = None,
    architecture: type[PreTrainedModel] | None = None,
) -> tuple[int, int]:
    """Count the FLOPs of one example: of its forward, and of forward and backward together.

    Args:
        config (`PretrainedConfig`): Configuration of the model, without an adapter.
        inputs (`dict`): Arguments of the model's `forward`, for any number of examples; shapes alone are used.
        trained ([`Trained`]): What is trained of the model.
        view ([`~jest_hf.images.views.View`], *optional*): A cheaper view of the image, for a model with towers.
        architecture (`type[PreTrainedModel]`, *optional*): Class of the model, where its towers cannot be run one by
            one. Default: the class of a dual encoder whose towers can.

    Returns:
        `tuple`: FLOPs of the forward, and of forward and backward. Gradients that nothing needs are not counted: those
        of frozen weights, of frozen towers, and of the pixels.
    """
    config = _eager(config)
    if architecture is not None:
        with _without_values():
            return _count_update(trained.applied_to(architecture(config)), _one(inputs))
    build: Any = MODEL_MAPPING[type(config)]
    with built_whole(), torch.device("meta"):
        model: Any = base_model(trained.applied_to(build(config)))
        accept_views(model)
        images, texts = _tower_inputs(config, **_sizes_of(inputs, view))
        towers = _count_update(model.get_image_features, images), _count_update(model.get_text_features, texts)
    return sum(forward for forward, _ in towers), sum(both for _, both in towers)


def _count_update(function: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[int, int]:
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        output = function(**inputs)
        forward = int(counter.get_total_flops())
        total = torch.stack([value.float().sum() for value in _results(output)]).sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]  # torch has no annotation
    return forward, int(counter.get_total_flops())


def _results(output: Any) -> list[Tensor]:
    """Return what the loss depends on, of the output of a tower, of a dual encoder or of a model with labels."""
    if isinstance(output, Tensor):
        return [output]
    for names in (("image_embeds", "text_embeds"), ("logits",), ("pooler_output",)):
        found = [value for name in names if (value := getattr(output, name, None)) is not None]
        if found:
            return found
    return [value for value in output.values() if isinstance(value, Tensor) and value.is_floating_point()]


__all__ = [
    "Trained",
    "flops_of_inputs",
    "forward_flops",
    "forward_flops_of",
    "tower_flops_of",
    "update_flops",
]
