# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a step, counted from the model's operations.

1. The forward of one example runs on the meta device (shapes without values) under PyTorch's FLOP counter, tower by
   tower. This gives F, the exact FLOPs of a forward, for any dual encoder (`Trainer.total_flos` counts one tower
   only).
2. The FLOPs of a step follow from F: training b examples costs 3 F b (the backward costs twice the forward), scoring a
   super-batch of B costs F B, the reference costs F_ref B unless its embeddings are cached, and joint selection costs
   the matrix products of the conditional sums. At a cheaper view, F is that of the view.

Only matrix products and convolutions are counted, with two FLOPs for a multiply-add. Two parts are left out: the b x b
logits of the loss, which are the same for every selection, and making the images of a view (0.02 % of the forward of a
ViT-B).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from jest_hf.batch import TEXT_KEYS
from jest_hf.models import View, accept_views
from jest_hf.models.families import check_view, family_of
from jest_hf.models.sharding import built_whole
from jest_hf.selection import SELECTIONS


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
    config = copy.deepcopy(model.config if isinstance(model, PreTrainedModel) else model)
    config._attn_implementation = "eager"  # plain matrix products: fused kernels are not counted on every platform
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

    architecture: Any = MODEL_MAPPING[type(config)]
    with built_whole(), torch.device("meta"):
        meta_model = architecture(config).eval()
        accept_views(meta_model)
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
        return {
            "image": _count(meta_model.get_image_features, {"pixel_values": (images,)}),
            "text": _count(meta_model.get_text_features, texts),
        }


def flops_of_inputs(config: PretrainedConfig, inputs: Mapping[str, Any], view: View | None = None) -> dict[str, int]:
    """Count as [`forward_flops`] does, with the sizes of the inputs of a dual encoder's `forward`, or at a view."""
    pixels, text_length = inputs["pixel_values"], inputs["input_ids"].shape[1]
    if view is not None:
        return forward_flops(config, text_length=text_length, view=view)
    size = {"num_patches": pixels.shape[1]} if pixels.dim() == 3 else {"image_size": pixels.shape[-1]}
    return forward_flops(config, text_length=text_length, **size)


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
    >>> from jest_hf.report.flops import forward_flops_of
    >>> config = LlamaConfig(
    ...     vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> flops = forward_flops_of(LlamaForCausalLM, config, {"input_ids": torch.zeros(4, 8, dtype=torch.int64)})
    >>> f"{flops / 1e3:.1f} kFLOPs"
    '70.7 kFLOPs'

    ```
    """
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # as in `forward_flops`
    # For mixtures of experts: the other implementations read values, or need bfloat16.
    config._experts_implementation = "batched_mm"
    # Fake tensors in addition, since transformers does not read their values (of a mask, for instance).
    with built_whole(), FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta"):
        one = {
            name: torch.empty((1 if name in TEXT_KEYS else n_images, *value.shape[1:]), dtype=value.dtype)
            if isinstance(value, Tensor)
            else value
            for name, value in inputs.items()
        }
        return _count(architecture(config).train(False), one)


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


def _count(function: Callable[..., Any], inputs: Mapping[str, Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(**inputs)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step or of several steps, over all ranks.

    Args:
        training (`float`, *optional*, defaults to `0.0`): Forward and backward of the sub-batch.
        scoring (`float`, *optional*, defaults to `0.0`): The learner's forward of the super-batch.
        reference (`float`, *optional*, defaults to `0.0`): The reference's forward of the super-batch.
        selection (`float`, *optional*, defaults to `0.0`): Drawing the sub-batch.
        beside (`float`, *optional*, defaults to `0.0`): Training a proxy or an online reference beside the learner.
        training_saved (`float`, *optional*, defaults to `0.0`):
            FLOPs saved in training by the part of the sub-batch that is trained on at a cheaper view. Not a part of
            the total.

    Example:

    ```python
    >>> from jest_hf.report import StepFlops
    >>> step = StepFlops(training=3.0, scoring=5.0) + StepFlops(reference=1.0)
    >>> step.total, step.relative_to_iid
    (9.0, 3.0)

    ```
    """

    training: float = 0.0
    scoring: float = 0.0
    reference: float = 0.0
    selection: float = 0.0
    beside: float = 0.0
    training_saved: float = 0.0

    @property
    def total(self) -> float:
        """The sum of training, scoring, reference, selection, and training of other models beside the learner."""
        return self.training + self.scoring + self.reference + self.selection + self.beside

    def __add__(self, other: StepFlops) -> StepFlops:
        return StepFlops(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def relative_to_iid(self) -> float:
        """The total, divided by the FLOPs of IID training with the same sub-batch size at full resolution."""
        return self.total / (self.training + self.training_saved)


def step_flops(
    forward: float,
    *,
    sub_batch: int,
    super_batch: int,
    scoring_forward: float | None = None,
    low_resolution_forward: float | None = None,
    low_resolution_fraction: float = 0.0,
    reference_forward: float = 0.0,
    selection_widths: Sequence[int] = (),
    convention: Literal["plain", "paper"] = "plain",
) -> StepFlops:
    """Compute the FLOPs of a step, with b the size of the sub-batch and B that of the super-batch (arXiv 2406.17711).

    - training: 3 F b, or 3 ((1 - q) F + q F_low) b with a share q of the sub-batch at a cheaper view (Flexi-JEST);
    - scoring: F_score B. In the paper's convention F (B - b) if F_score is F, so that the forward of the selected
      examples is not counted twice (2.33 in the paper), and F_score B if they are scored at another view (1.10);
    - reference: F_ref B;
    - selection: for each model, each of the b drawn examples is compared with the B candidates once as an image and
      once as a text, two products [B, D] x [D, b]: 2 * 2 B b D.

    A step without selection (IID training) consists of training only: pass `scoring_forward=0.0`.

    Args:
        forward (`float`):
            F, the learner's forward FLOPs of one example, both towers ([`forward_flops`]).
        sub_batch (`int`):
            Examples trained on, over all ranks.
        super_batch (`int`):
            Examples scored, over all ranks.
        scoring_forward (`float`, *optional*, defaults to `forward`):
            F_score, the learner's forward FLOPs of one example in scoring; 0.0 if the criterion does not use the
            learner.
        low_resolution_forward (`float`, *optional*, defaults to `forward`):
            F_low, the learner's forward FLOPs of one example at the view of a part of the sub-batch.
        low_resolution_fraction (`float`, *optional*, defaults to `0.0`):
            q, the share of the sub-batch that is trained on at that view, in [0, 1].
        reference_forward (`float`, *optional*, defaults to `0.0`):
            F_ref, the reference's forward FLOPs of one example; 0.0 if its embeddings are cached or not used.
        selection_widths (sequence of `int`, *optional*, defaults to `()`):
            The embedding width D of each model that scores in joint selection; empty for other selections.
        convention (`str`, *optional*, defaults to `"plain"`):
            `"plain"` or `"paper"`.

    Returns:
        [`StepFlops`]: FLOPs of the step.

    Raises:
        ValueError: If `convention` is unknown, the sub-batch is larger than the super-batch, or
            `low_resolution_fraction` is outside of [0, 1].

    Example:

    ```python
    >>> from jest_hf.report import step_flops
    >>> step = step_flops(1.0, sub_batch=20, super_batch=100)  # filter ratio 0.8, cached reference
    >>> step.training, step.scoring, round(step.relative_to_iid, 2)
    (60.0, 100.0, 2.67)

    ```
    """
    if convention not in ("plain", "paper"):
        raise ValueError(f'convention={convention!r} is not known; choose "plain" or "paper".')
    if sub_batch > super_batch:
        raise ValueError(
            f"sub_batch={sub_batch} exceeds super_batch={super_batch}; pass a super_batch at least as large as the "
            "sub_batch."
        )
    if not 0.0 <= low_resolution_fraction <= 1.0:
        raise ValueError(
            f"low_resolution_fraction={low_resolution_fraction} must lie in [0, 1]; pass 0.0 for full resolution."
        )
    if scoring_forward is None:
        scoring_forward = forward
    if low_resolution_forward is None:
        low_resolution_forward = forward
    reused = sub_batch if convention == "paper" and scoring_forward == forward else 0
    saved = 3.0 * sub_batch * low_resolution_fraction * (forward - low_resolution_forward)
    return StepFlops(
        training=3.0 * forward * sub_batch - saved,
        scoring=scoring_forward * (super_batch - reused),
        reference=reference_forward * super_batch,
        selection=sum(4.0 * super_batch * sub_batch * width for width in selection_widths),
        training_saved=saved,
    )


def flops_of_step(
    args: Any,
    forward: Mapping[str, float],
    widths: Mapping[str, int],
    *,
    trained: int | None = None,
    scored: int | None = None,
    readable: int | None = None,
) -> StepFlops:
    """Compute the FLOPs of one step of a [`~jest_hf.JESTTrainer`], over all ranks, in the plain convention.

    Args:
        args ([`~jest_hf.JESTConfig`]): Options of the run.
        forward (`dict`): Forward FLOPs of one example by model: `"learner"`, `"proxy"` and `"reference"` (absent if it
            is read from a cache), and `"learner_at_view"`, if the super-batch is scored and
            `args.low_resolution_fraction` of the sub-batch is trained on at a cheaper view.
        widths (`dict`): Embedding width of each model that scores.
        trained (`int`, *optional*, defaults to `args.sub_batch_size`): Examples trained on (fewer with many broken
            rows).
        scored (`int`, *optional*, defaults to `args.super_batch_size`): Rows scored; 0 in a step without selection.
        readable (`int`, *optional*, defaults to `args.super_batch_size`): Rows that an online reference is trained on.
    """
    trained = args.sub_batch_size if trained is None else trained
    scored = args.super_batch_size if scored is None else scored
    readable = args.super_batch_size if readable is None else readable
    scores = args.scored_models if scored else ()
    reference, proxy = forward.get("reference", 0.0), forward.get("proxy", 0.0)
    reference_in_step = 0.0 if args.cache_reference else reference
    at_view = forward.get("learner_at_view")
    step = step_flops(
        forward["learner"],
        sub_batch=trained,
        super_batch=max(scored, trained),
        scoring_forward=(proxy or at_view) if "learner" in scores else 0.0,
        low_resolution_forward=at_view,
        low_resolution_fraction=args.low_resolution_fraction if at_view is not None else 0.0,
        reference_forward=reference_in_step if "reference" in scores else 0.0,
        selection_widths=[widths[name] for name in scores] if SELECTIONS[args.selection].needs_pairs else [],
    )
    # A reference that is used for distillation only embeds the sub-batch and not the super-batch.
    n_distilled = trained if args.distillation_weight and "reference" not in scores else 0
    n_online = readable if args.reference == "online" else 0
    return replace(
        step,
        reference=step.reference + reference_in_step * n_distilled,
        beside=3.0 * (proxy * trained + reference * n_online),
    )


def flops_of_cache(args: Any, forward: Mapping[str, float], n_rows: int | None) -> float:
    """Compute the FLOPs of caching the reference before the first step; 0 without `args.cache_reference`.

    Args:
        args, forward: As in [`flops_of_step`].
        n_rows (`int`, *optional*): Rows of the training data; `None` for a stream, which cannot be cached.
    """
    if not args.cache_reference or n_rows is None:
        return 0.0
    return float(n_rows * forward.get("reference", 0.0))
