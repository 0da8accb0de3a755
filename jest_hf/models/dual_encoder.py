# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""One view of every dual encoder: a super-batch in, `ContrastiveEmbeddings` out.

SigLIP, SigLIP 2 and CLIP differ in what they accept (attention mask or not, pixels or patches), in their temperature
(bias or not) and in the loss they were made for. `FAMILIES` holds these differences; nothing above this file asks for
a model type.

Everything runs through the model's own `forward`, never through `get_image_features` or a parameter from outside:
wrapped models (DDP, ZeRO, FSDP) gather their parameters only there. `expose_temperature` therefore lets the forward
hand out the logit scale and bias together with the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from jest_hf.batch import IMAGE_KEYS, TEXT_KEYS, VIEW_PREFIX
from jest_hf.images.normalise import Normalisation
from jest_hf.images.views import View
from jest_hf.models.families import family_of
from jest_hf.selection import ContrastiveEmbeddings


@dataclass
class DualEncoderOutput(ModelOutput):
    """
    A dual encoder's output with its temperature.

    Args:
        image_embeds (`torch.Tensor`): L2-normalised, `[b, D]`.
        text_embeds (`torch.Tensor`): L2-normalised, `[b, D]`.
        logits_per_image (`torch.Tensor`): `[b, b]`.
        logits_per_text (`torch.Tensor`): `[b, b]`.
        logit_scale (`torch.Tensor`): the multiplier itself, not its logarithm.
        logit_bias (`torch.Tensor`, *optional*): absent in CLIP.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    logit_scale: Tensor | None = None
    logit_bias: Tensor | None = None

    @classmethod
    def of(cls, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> DualEncoderOutput:
        """What a loss needs of an output, put together from its parts."""
        return cls(image_embeds=image, text_embeds=text, logit_scale=scale, logit_bias=bias)


def expose_temperature(model: PreTrainedModel) -> None:
    """Make `model.forward` return a [`DualEncoderOutput`]. Harmless when called twice; nothing of it is saved."""
    if _add_temperature not in model._forward_hooks.values():
        model.register_forward_hook(_add_temperature)


def _add_temperature(model: PreTrainedModel, args: tuple, output: Any) -> DualEncoderOutput:
    bias = dict(model.named_parameters(recurse=False)).get("logit_bias")
    return DualEncoderOutput(
        loss=output.loss,
        logits_per_image=output.logits_per_image,
        logits_per_text=output.logits_per_text,
        text_embeds=output.text_embeds,
        image_embeds=output.image_embeds,
        logit_scale=model.logit_scale.float().exp(),
        # `+ 0` leaves the graph whole and hands out no parameter: engines may free the parameter after the forward.
        logit_bias=None if bias is None else bias.float() + 0,
    )


class DualEncoder:
    """
    How one model reads a super-batch.

    Args:
        config: the model's configuration (for its [`Family`]).
        processor: the model's own processor; its image processor names the normalisation, which happens here, on the
            device: until then images stay uint8.
        prefix (`str`, *optional*, defaults to `""`):
            Prefix of this model's own keys in the super-batch (`"ref_"` for a reference). A key that is absent with
            the prefix is shared with the learner and read without it.
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
        """
        Arguments of the model's `forward` for some rows of a super-batch, normalised, on the batch's device.

        Args:
            batch (mapping of `str` to `torch.Tensor`):
                The super-batch. Images at the view are read from `view_pixel_values` and its companions where there
                are such keys (then `pixel_values` is needed for rows at full resolution only), and made from
                `pixel_values` where there are none.
            rows (`slice`, *optional*, defaults to all): Of the batch.
            view ([`View`], *optional*): A cheaper view, for a model that accepts views ([`accept_views`]).
            n_at_view (`int`, *optional*):
                So many rows at the beginning of the batch (not of `rows`) are seen at the view, and the others at full
                resolution. Default: all rows.
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
        # A reference with its own image or text keys must take all of them from there: never half from the learner's.
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
        """
        One forward of `model` (after [`expose_temperature`]) over these rows of a super-batch, with its graph.

        With `view`, the first `n_at_view` rows of the batch (default: all) are at it; see [`~DualEncoder.inputs`].
        """
        return model(**self.inputs(batch, rows, view, n_at_view))

    @torch.no_grad()
    def score(
        self, model: nn.Module, batch: Mapping[str, Tensor], batch_size: int, view: View | None = None
    ) -> ContrastiveEmbeddings:
        """
        Embed a whole batch without gradients, in eval mode, `batch_size` rows at a time, at full resolution or a view.

        The model is left in eval mode: `Trainer.training_step` puts it back into train mode before it learns.
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
