# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Reading of a super-batch by a model of examples without pairs: a classifier or a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jest_hf.batch import REF_PREFIX
from jest_hf.images.normalise import Normalisation
from jest_hf.losses.pointwise import per_example_losses
from jest_hf.models import View
from jest_hf.selection import PointwiseLosses


KINDS = ("classification", "language_model")  # models of examples without pairs
NOT_INPUTS = ("labels", "example_id", "valid")  # keys of a super-batch that are no model inputs
IMAGES = "pixel_values"


class PointwiseReader:
    """Reads a super-batch for one model, runs the model and scores with it; a [`~jest_hf.models.reader.Reader`].

    Args:
        causal (`bool`): Whether the model is a causal language model.
        normalisation ([`~jest_hf.images.normalise.Normalisation`], *optional*): Normalisation of images, for a model
            of images.
        label_smoothing (`float`, *optional*, defaults to `0.0`): Label smoothing of the scores and of the training
            loss.
        prefix (`str`, *optional*, defaults to `""`): Prefix of this model's own keys in the super-batch (`"ref_"` for
            a reference). A model without keys of its own reads the keys of the learner.
    """

    def __init__(
        self,
        causal: bool,
        normalisation: Normalisation | None = None,
        label_smoothing: float = 0.0,
        prefix: str = "",
    ) -> None:
        self.causal = causal
        self.normalisation = normalisation
        self.label_smoothing = label_smoothing
        self.prefix = prefix

    def inputs(
        self,
        batch: Mapping[str, Tensor],
        rows: slice = slice(None),
        view: View | None = None,
        n_at_view: int | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of the model's `forward` for some rows of a super-batch, without the labels.

        Images are normalised on their device.

        Raises:
            ValueError: for a view, as only dual encoders have views.
        """
        if view is not None:
            raise ValueError(f"scoring_view='{view}' is for dual encoders, and this model is none; omit scoring_view.")
        shared = {name: value for name, value in batch.items() if not name.startswith(REF_PREFIX)}
        # A model with keys of its own reads all keys with its prefix, and never mixes them with keys of the learner.
        own = {name.removeprefix(self.prefix): batch[name] for name in batch if name.startswith(self.prefix)}
        chosen = own if self.prefix and own else shared
        inputs = {name: value[rows] for name, value in chosen.items() if name not in NOT_INPUTS}
        if self.normalisation is not None:
            inputs[IMAGES] = self.normalisation(inputs[IMAGES])
        # Keys and values of past tokens are for generation, and would stay in memory as long as the output.
        return inputs | ({"use_cache": False} if self.causal else {})

    def __call__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        rows: slice = slice(None),
        view: View | None = None,
        n_at_view: int | None = None,
    ) -> Any:
        """Run `model`, wrapped or not, once over these rows, with its graph; the output has `logits`."""
        return model(**self.inputs(batch, rows, view, n_at_view))

    @torch.no_grad()
    def score(
        self, model: nn.Module, batch: Mapping[str, Tensor], batch_size: int, view: View | None = None
    ) -> PointwiseLosses:
        """Compute the losses of a whole super-batch without gradients, in eval mode, `batch_size` rows at a time.

        The loss of a row without a label is 0. The model stays in eval mode; `Trainer.training_step` switches it to
        train mode before the update.
        """
        model.eval()
        parts = []
        for start in range(0, len(batch["labels"]), batch_size):
            rows = slice(start, start + batch_size)
            logits = self(model, batch, rows, view).logits
            parts.append(self.losses(logits, batch["labels"][rows]))
        return PointwiseLosses(torch.cat(parts).float())

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, `[b]`; see [`~jest_hf.losses.pointwise.per_example_losses`]."""
        return per_example_losses(logits, labels, label_smoothing=self.label_smoothing, causal=self.causal)
