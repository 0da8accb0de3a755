# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""One interface to every dual encoder: a super-batch in, `ContrastiveEmbeddings` out.

SigLIP, SigLIP 2 and CLIP differ in their inputs (attention mask or not, pixels or patches), in their temperature (bias
or not) and in their loss. [`~jest_hf.models.families.FAMILIES`] holds these differences.

All computation goes through the model's own `forward`, never through `get_image_features` or a parameter: wrapped
models (DDP, ZeRO, FSDP) gather their parameters only in `forward`. Therefore [`expose_temperature`] makes the forward
return the logit scale and bias together with the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from jest_hf.batch import IMAGE_KEYS, TEXT_KEYS, VIEW_PREFIX
from jest_hf.images.normalise import Normalisation
from jest_hf.images.views import View
from jest_hf.models.families import family_of
from jest_hf.selection import ContrastiveEmbeddings


_SET_BY_FORWARD: Any = None  # ModelOutput allows no other default


@dataclass
class DualEncoderOutput(ModelOutput):
    """The output of a dual encoder, with its temperature.

    Args:
        loss (`torch.Tensor`, *optional*): The model's own loss, if its `forward` was called with `return_loss=True`.
        logits_per_image (`torch.Tensor`, *optional*): `[b, b]`.
        logits_per_text (`torch.Tensor`, *optional*): `[b, b]`.
        text_embeds (`torch.Tensor`): L2-normalised text embeddings, `[b, D]`.
        image_embeds (`torch.Tensor`): L2-normalised image embeddings, `[b, D]`.
        logit_scale (`torch.Tensor`): The multiplier itself, not its logarithm; one element.
        logit_bias (`torch.Tensor`, *optional*): One element; `None` for CLIP.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor = _SET_BY_FORWARD
    image_embeds: Tensor = _SET_BY_FORWARD
    logit_scale: Tensor = _SET_BY_FORWARD
    logit_bias: Tensor | None = None

    @classmethod
    def of(cls, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> DualEncoderOutput:
        """Return an output with the parts that a loss needs."""
        return cls(image_embeds=image, text_embeds=text, logit_scale=scale, logit_bias=bias)


def expose_temperature(model: PreTrainedModel) -> None:
    """Make `model.forward` return a [`DualEncoderOutput`].

    A second call has no effect, and nothing of this is saved with the model.

    Args:
        model ([`~transformers.PreTrainedModel`]): A model of one of the [`~jest_hf.models.families.FAMILIES`].

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.data import train_tokenizer
    >>> from jest_hf.models import build_siglip, expose_temperature
    >>> tokenizer = train_tokenizer(["a red square"], max_length=16)
    >>> model = build_siglip("micro", tokenizer, image_size=32, patch_size=8)
    >>> expose_temperature(model)
    >>> ids = tokenizer(["a red square"], padding="max_length", return_tensors="pt").input_ids
    >>> output = model(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32))
    >>> output.image_embeds.shape, round(output.logit_scale.item()), output.logit_bias.item()
    (torch.Size([1, 48]), 10, -10.0)

    ```
    """
    if _add_temperature not in model._forward_hooks.values():
        model.register_forward_hook(_add_temperature)


def _add_temperature(model: Any, args: tuple[Any, ...], output: Any) -> DualEncoderOutput:
    bias = dict(model.named_parameters(recurse=False)).get("logit_bias")
    scale = model.logit_scale.float().exp()
    largest = family_of(model.config).largest_scale
    return DualEncoderOutput(
        # Nothing here needs these three: a model of another family may go without them.
        loss=getattr(output, "loss", None),
        logits_per_image=getattr(output, "logits_per_image", None),
        logits_per_text=getattr(output, "logits_per_text", None),
        text_embeds=output.text_embeds,
        image_embeds=output.image_embeds,
        logit_scale=scale if largest is None else _AtMost.apply(scale, largest),
        # `+ 0` returns a new tensor of the graph, not the parameter, which engines may free after the forward.
        logit_bias=None if bias is None else bias.float() + 0,
    )


class _AtMost(torch.autograd.Function):
    """`clamp(max=limit)`, but at the limit the gradient that leads back below it passes.

    So the parameter stays where it is at the limit, and a checkpoint that was saved there can be trained. A clamp of
    the parameter after each step would have to reach the copies that engines keep.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(value >= limit)
        return value.clamp(max=limit)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (reached,) = ctx.saved_tensors
        return gradient.masked_fill(reached & (gradient < 0), 0), None


class DualEncoder:
    """Reads a super-batch for one model, runs the model and scores with it.

    Args:
        config: The model's configuration, which gives its [`~jest_hf.models.families.Family`].
        processor: The model's processor. Its image processor gives the normalisation, which happens here, on the
            device.
        prefix (`str`, *optional*, defaults to `""`):
            Prefix of this model's own keys in the super-batch (`"ref_"` for a reference). A key that is missing with
            the prefix is shared with the learner and is read without the prefix.
    """

    def __init__(self, config: Any, processor: Any, prefix: str = "") -> None:
        self.family = family_of(config)
        self.vision_config = config.vision_config
        self.prefix = prefix
        self.normalise = Normalisation(processor.image_processor)

    def inputs(
        self,
        batch: Mapping[str, Tensor],
        rows: slice = slice(None),
        view: View | None = None,
        n_at_view: int | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of the model's `forward` for some rows of a super-batch.

        Args:
            batch (mapping of `str` to `torch.Tensor`):
                The super-batch. Images at the view are read from `view_pixel_values` and the other keys with this
                prefix; then `pixel_values` is needed only for rows at full resolution. Without these keys, the images
                at the view are made from `pixel_values`.
            rows (`slice`, *optional*, defaults to all): Rows of the batch.
            view ([`View`], *optional*): A cheaper view, for a model that accepts views
                ([`~jest_hf.models.accept_views`]).
            n_at_view (`int`, *optional*):
                Number of rows, counted from the start of the batch (not of `rows`), whose images are at the view. The
                other rows are at full resolution. Default: all rows.

        Returns:
            `dict`: the arguments, on the batch's device; images are normalised.
        """
        text_keys = TEXT_KEYS if self.family.attention_mask else TEXT_KEYS[:1]
        text = self._pick(batch, text_keys, rows)
        if view is None:
            return self._images(batch, rows) | text
        start, stop, _ = rows.indices(len(batch[TEXT_KEYS[0]]))
        middle = stop if n_at_view is None else min(max(start, n_at_view), stop)
        images = []
        if middle > start:
            images.append(self._images_at(view, batch, slice(start, middle)))
        if stop > middle:
            images.append(self._images(batch, slice(middle, stop)))
        return {"pixel_values": tuple(images)} | text

    def _images(self, batch: Mapping[str, Tensor], rows: slice, prefix: str = "") -> dict[str, Tensor]:
        images = self._pick(batch, IMAGE_KEYS, rows, prefix)
        return images | {"pixel_values": self.normalise(images["pixel_values"])}

    def _images_at(self, view: View, batch: Mapping[str, Tensor], rows: slice) -> dict[str, Any]:
        made = VIEW_PREFIX + self.prefix + IMAGE_KEYS[0] in batch
        return view.images(self._images(batch, rows, VIEW_PREFIX if made else ""), self.vision_config)

    def _pick(
        self, batch: Mapping[str, Tensor], keys: tuple[str, ...], rows: slice, prefix: str = ""
    ) -> dict[str, Tensor]:
        # A reference with own image keys reads all image keys with its prefix, and so for text: it never mixes them
        # with keys of the learner.
        own = prefix + self.prefix
        prefix = own if own + keys[0] in batch else prefix
        return {key: batch[prefix + key][rows] for key in keys if prefix + key in batch}

    def __call__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        rows: slice = slice(None),
        view: View | None = None,
        n_at_view: int | None = None,
    ) -> DualEncoderOutput:
        """Run `model` (after [`expose_temperature`]) once over these rows of a super-batch, with its graph.

        Arguments are those of [`~DualEncoder.inputs`].
        """
        return model(**self.inputs(batch, rows, view, n_at_view))

    @torch.no_grad()
    def score(
        self, model: nn.Module, batch: Mapping[str, Tensor], batch_size: int, view: View | None = None
    ) -> ContrastiveEmbeddings:
        """Embed a whole super-batch without gradients, in eval mode.

        The model stays in eval mode; `Trainer.training_step` switches it to train mode before the update.

        Args:
            model (`torch.nn.Module`): The model, wrapped or not, after [`expose_temperature`].
            batch (mapping of `str` to `torch.Tensor`): The super-batch.
            batch_size (`int`): Number of rows per forward.
            view ([`View`], *optional*): Cheaper view of all images; by default full resolution.

        Returns:
            [`~jest_hf.batch.ContrastiveEmbeddings`]: float32, in the order of the rows.
        """
        model.eval()
        n_rows = len(batch["example_id"])
        starts = range(0, n_rows, batch_size)
        parts = [self(model, batch, slice(start, start + batch_size), view) for start in starts]
        return ContrastiveEmbeddings(
            image=torch.cat([part.image_embeds for part in parts]).float(),
            text=torch.cat([part.text_embeds for part in parts]).float(),
            logit_scale=parts[0].logit_scale,
            logit_bias=parts[0].logit_bias,
        )
