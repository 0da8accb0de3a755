# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a step, counted rather than guessed.

1. The forward of one example is run on the meta device (shapes without values) under PyTorch's FLOP counter, tower by
   tower, which gives F exactly for any dual encoder. `Trainer.total_flos` knows one tower only.
2. A step is put together from F: an update of b examples costs 3F b (the backward is twice the forward), scoring a
   super-batch of B costs F B, the reference F_ref B unless its embeddings are cached, and drawing the sub-batch costs
   the matrix products of the running conditional sums. At a cheaper view of the images F is that of the view.

Only matrix products and convolutions count, a multiply-add being two FLOPs. The b x b logits of the loss, the same for
every way to select, are left out, and so is making the images of a view (0.02 % of a ViT-B's forward).
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
    """
    Counts the forward FLOPs of one image and of one text, each through its tower and projection.

    Args:
        model (`PreTrainedModel` or `PretrainedConfig`):
            A `SiglipModel`, `Siglip2Model` (NaFlex) or `CLIPModel`, or its configuration. Its weights are not touched.
        image_size (`int`, *optional*, defaults to the size in the configuration):
            Height and width of the images in pixels.
        text_length (`int`, *optional*, defaults to the longest text that the model takes):
            Tokens in a text, padding included.
        num_patches (`int`, *optional*, defaults to the number in the configuration):
            Patches in an image of a NaFlex model, padding included, in place of `image_size`.
        view ([`~jest_hf.models.View`], *optional*):
            A cheaper view of an image of the configuration's size, in place of `image_size` and `num_patches`.

    Returns:
        `dict[str, int]`: FLOPs under `"image"` and `"text"`; their sum is the F of [`step_flops`].

    Raises:
        `ValueError`: if `image_size` is given for a NaFlex model, or `num_patches` for any other, if `view` does not
            suit the model, or is given together with a size.
    """
    config = copy.deepcopy(model.config if isinstance(model, PreTrainedModel) else model)
    config._attn_implementation = "eager"  # plain matrix products: fused kernels are not counted on every platform
    vision = config.vision_config
    takes_patches = family_of(config).patches
    if takes_patches and image_size is not None:
        raise ValueError(f"image_size={image_size} has no meaning for a NaFlex model: pass num_patches.")
    if num_patches is not None and not takes_patches:
        raise ValueError(f"num_patches={num_patches} has a meaning for NaFlex models only: pass image_size.")

    if view is not None:
        check_view(view, config)
        if image_size is not None or num_patches is not None:
            raise ValueError(f"view '{view}' is one of the model's own size: leave out image_size and num_patches.")
        if takes_patches:
            num_patches = view.value

    with built_whole(), torch.device("meta"):
        model = MODEL_MAPPING[type(config)](config).eval()
        accept_views(model)
        length = config.text_config.max_position_embeddings if text_length is None else text_length
        texts = {"input_ids": torch.zeros(1, length, dtype=torch.int64)}
        if takes_patches:
            patches = vision.num_patches if num_patches is None else num_patches
            images = {
                "pixel_values": torch.zeros(1, patches, vision.num_channels * vision.patch_size**2),
                "pixel_attention_mask": None,  # padding is computed like the rest, masked or not
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
            "image": _count(model.get_image_features, {"pixel_values": (images,)}),
            "text": _count(model.get_text_features, texts),
        }


def flops_of_inputs(config: PretrainedConfig, inputs: Mapping[str, Any], view: View | None = None) -> dict[str, int]:
    """As [`forward_flops`], of what a dual encoder's `forward` gets, for any number of examples, or a view of it."""
    pixels, text_length = inputs["pixel_values"], inputs["input_ids"].shape[1]
    if view is not None:
        return forward_flops(config, text_length=text_length, view=view)
    size = {"num_patches": pixels.shape[1]} if pixels.dim() == 3 else {"image_size": pixels.shape[-1]}
    return forward_flops(config, text_length=text_length, **size)


def forward_flops_of(architecture: type[PreTrainedModel], config: PretrainedConfig, inputs: Mapping[str, Any]) -> int:
    """
    Counts the forward FLOPs of ONE example of any model.

    Args:
        architecture (`type[PreTrainedModel]`): Its class, such as `ViTForImageClassification`.
        config (`PretrainedConfig`): Its configuration.
        inputs (`dict`): What its `forward` gets, for any number of examples: shapes and dtypes of the tensors count.

    Returns:
        `int`: the F of [`step_flops`]; padding counts like text, of which a model computes as much.

    Raises:
        RuntimeError: for a model that cannot be run without values.
    """
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # as in `forward_flops`
    # Of a mixture of experts: the others look at values, or want bfloat16.
    config._experts_implementation = "batched_mm"
    # Fake tensors too: of these transformers knows that there are no values (of a mask, say) to look at.
    with built_whole(), FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta"):
        one = {
            name: torch.empty((1, *value.shape[1:]), dtype=value.dtype) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        return _count(architecture(config).eval(), one)


def _shapes_of(view: View, shape: torch.Size, vision: Any) -> dict[str, Any]:
    """What the tower gets at a view, for its shapes: the resizes themselves do not run without values."""
    images = view.images({"pixel_values": torch.zeros(shape, device="cpu")}, vision)
    return {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in images.items()}


def _count(function: Callable[..., Any], inputs: Mapping[str, Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(**inputs)
    return counter.get_total_flops()


@dataclass(frozen=True)
class StepFlops:
    """
    FLOPs of one step, over the whole batch, or of several.

    Args:
        training (`float`, *optional*, defaults to `0.0`): forward and backward of the sub-batch.
        scoring (`float`, *optional*, defaults to `0.0`): the learner's forward of the super-batch.
        reference (`float`, *optional*, defaults to `0.0`): the reference model's forward of the super-batch.
        selection (`float`, *optional*, defaults to `0.0`): drawing the sub-batch.
        beside (`float`, *optional*, defaults to `0.0`): training a proxy or an online reference beside the learner.
        training_saved (`float`, *optional*, defaults to `0.0`):
            what training would have cost more if all of the sub-batch were seen at full resolution.
    """

    training: float = 0.0
    scoring: float = 0.0
    reference: float = 0.0
    selection: float = 0.0
    beside: float = 0.0
    training_saved: float = 0.0

    @property
    def total(self) -> float:
        """What is spent: training, scoring, reference, selection, and training other models beside the learner."""
        return self.training + self.scoring + self.reference + self.selection + self.beside

    def __add__(self, other: StepFlops) -> StepFlops:
        return StepFlops(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def relative_to_iid(self) -> float:
        """The cost of this step in steps of IID training with the same sub-batch size, at full resolution."""
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
    """
    Adds up the FLOPs of a step, with b the sub-batch and B the super-batch (arXiv 2406.17711).

    - training: 3 F b, or 3 ((1 - q) F + q F_low) b with a part q of the sub-batch at a cheaper view (Flexi-JEST);
    - scoring: F_score B. By the paper's convention F (B - b) where F_score is F, since the forward of the selected
      examples is then not counted twice (its 2.33), and F_score B where they are scored at another view (its 1.10);
    - reference: F_ref B;
    - selection: for each model, each of the b drawn examples is compared with the B candidates once as an image and
      once as a text, two products [B, D] x [D, b]: 2 * 2 B b D.

    A step without selection (IID training) has no more than its training part: pass `scoring_forward=0.0`.

    Args:
        forward (`float`):
            F, the learner's forward FLOPs of one example, both towers ([`forward_flops`]).
        sub_batch (`int`):
            Examples trained on, over all ranks.
        super_batch (`int`):
            Examples scored, over all ranks.
        scoring_forward (`float`, *optional*, defaults to `forward`):
            F_score, the learner's forward FLOPs of one example in scoring; 0.0 where the criterion does not use the
            learner.
        low_resolution_forward (`float`, *optional*, defaults to `forward`):
            F_low, the learner's forward FLOPs of one example at the view at which a part of the sub-batch is trained.
        low_resolution_fraction (`float`, *optional*, defaults to `0.0`):
            q, the size of that part, in [0, 1].
        reference_forward (`float`, *optional*, defaults to `0.0`):
            F_ref, the reference's forward FLOPs of one example; 0.0 where its embeddings are cached or not used.
        selection_widths (sequence of `int`, *optional*, defaults to `()`):
            The embedding width D of each model whose scores joint selection draws from; empty for other selections.
        convention (`str`, *optional*, defaults to `"plain"`):
            `"plain"` or `"paper"`.

    Returns:
        [`StepFlops`]

    Raises:
        `ValueError`: if `convention` is neither, the sub-batch is larger than the super-batch, or
            `low_resolution_fraction` is no fraction.
    """
    if convention not in ("plain", "paper"):
        raise ValueError(f'convention={convention!r} is not known: choose "plain" or "paper".')
    if sub_batch > super_batch:
        raise ValueError(f"sub_batch={sub_batch} exceeds super_batch={super_batch}, from which it is drawn.")
    if not 0.0 <= low_resolution_fraction <= 1.0:
        raise ValueError(f"low_resolution_fraction={low_resolution_fraction} must lie in [0, 1].")
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
    """
    FLOPs of one step of a [`~jest_hf.JESTTrainer`], over all its devices, plain convention.

    Args:
        args ([`~jest_hf.JESTConfig`]): what a step does, and the sizes of one whose rows can all be read.
        forward (`dict`): forward FLOPs of one example by model, `"learner"`, `"proxy"` and `"reference"` (none where
            it is read from a cache), and `"learner_at_view"`, where the super-batch is scored and
            `args.low_resolution_fraction` of the sub-batch is trained at a cheaper view.
        widths (`dict`): embedding width of the models that score.
        trained (`int`, *optional*, defaults to `args.sub_batch_size`): examples trained on, fewer where rows break.
        scored (`int`, *optional*, defaults to `args.super_batch_size`): rows scored; 0 in a step that does not select.
        readable (`int`, *optional*, defaults to `args.super_batch_size`): rows that an online reference learns from.
    """
    trained = args.sub_batch_size if trained is None else trained
    scored = args.super_batch_size if scored is None else scored
    readable = args.super_batch_size if readable is None else readable
    scores = args.scored_models if scored else ()
    reference, proxy = forward.get("reference", 0.0), forward.get("proxy", 0.0)
    asked = 0.0 if args.cache_reference else reference
    at_view = forward.get("learner_at_view")
    step = step_flops(
        forward["learner"],
        sub_batch=trained,
        super_batch=max(scored, trained),
        scoring_forward=(proxy or at_view) if "learner" in scores else 0.0,
        low_resolution_forward=at_view,
        low_resolution_fraction=args.low_resolution_fraction if at_view is not None else 0.0,
        reference_forward=asked if "reference" in scores else 0.0,
        selection_widths=[widths[name] for name in scores] if SELECTIONS[args.selection].needs_pairs else [],
    )
    # A teacher that has not scored the super-batch is asked about the sub-batch alone.
    taught = trained if args.distillation_weight and "reference" not in scores else 0
    learned = readable if args.reference == "online" else 0
    return replace(
        step, reference=step.reference + asked * taught, beside=3.0 * (proxy * trained + reference * learned)
    )


def flops_of_cache(args: Any, forward: Mapping[str, float], n_rows: int | None) -> float:
    """FLOPs of caching the reference before the first step, with `args.cache_reference`; arguments as above, and the
    rows of the training data, of which a stream has no number."""
    return float(n_rows * forward.get("reference", 0.0)) if args.cache_reference else 0.0
