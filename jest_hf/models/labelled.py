# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How a model whose examples stand alone reads a super-batch."""

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


KINDS = ("classification", "language_model")  # of models whose examples stand alone
NOT_INPUTS = ("labels", "example_id", "valid")  # of a super-batch
IMAGES = "pixel_values"


class PointwiseReader:
    """
    How one model reads a super-batch, and what it has to say about it; see [`~objectives.objective.Reader`].

    Args:
        causal (`bool`): Whether it is a causal language model.
        normalisation ([`Normalisation`], *optional*): Of a model of images.
        label_smoothing (`float`, *optional*, defaults to `0.0`): In the scores, as in the training loss.
        prefix (`str`, *optional*, defaults to `""`): Of this model's own keys in the super-batch (`"ref_"` for a
            reference). Where there is none it reads what the learner reads.
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
        """
        Arguments of the model's `forward` for some rows of a super-batch: everything in it but the labels and what is
        not the model's, images normalised on their device.

        Raises:
            ValueError: for a view, which dual encoders alone have.
        """
        if view is not None:
            raise ValueError(f"scoring_view='{view}' is for dual encoders, and this model has no views; leave it out.")
        shared = {name: value for name, value in batch.items() if not name.startswith(REF_PREFIX)}
        # A model with keys of its own must take all of them from there: never half from the learner's.
        own = {name.removeprefix(self.prefix): batch[name] for name in batch if name.startswith(self.prefix)}
        chosen = own if self.prefix and own else shared
        inputs = {name: value[rows] for name, value in chosen.items() if name not in NOT_INPUTS}
        if self.normalisation is not None:
            inputs[IMAGES] = self.normalisation(inputs[IMAGES])
        # Keys and values of past tokens serve generation, and would stay in memory as long as the output does.
        return inputs | ({"use_cache": False} if self.causal else {})

    def __call__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        rows: slice = slice(None),
        view: View | None = None,
        n_at_view: int | None = None,
    ) -> Any:
        """One forward of `model`, wrapped or not, over these rows, with its graph; its output has `logits`."""
        return model(**self.inputs(batch, rows, view, n_at_view))

    @torch.no_grad()
    def score(
        self, model: nn.Module, batch: Mapping[str, Tensor], batch_size: int, view: View | None = None
    ) -> PointwiseLosses:
        """
        The losses of a whole super-batch without gradients, in eval mode, `batch_size` rows at a time; 0 for a row
        without a label.

        The model is left in eval mode: `Trainer.training_step` puts it back into train mode before it learns.
        """
        model.eval()
        parts = []
        for start in range(0, len(batch["labels"]), batch_size):
            rows = slice(start, start + batch_size)
            logits = self(model, batch, rows, view).logits
            parts.append(self.losses(logits, batch["labels"][rows]))
        return PointwiseLosses(torch.cat(parts).float())

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each example, `[b]`, of logits that this reader's forward gave; see [`per_example_losses`]."""
        return per_example_losses(logits, labels, label_smoothing=self.label_smoothing, causal=self.causal)
