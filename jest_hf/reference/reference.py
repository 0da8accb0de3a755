# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The reference of a run: who is asked, and whether its answers are known already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from jest_hf.models import DualEncoder, as_reference
from jest_hf.reference.cache import embed_rows
from jest_hf.selection import ContrastiveEmbeddings


class Reference:
    """
    What a training step asks about a super-batch.

    Args:
        view ([`~jest_hf.models.DualEncoder`]): How the reference reads a super-batch.
        model (`torch.nn.Module`): A frozen model of its own; or, with `shared`, the learner (a `peft.PeftModel`).
        shared (`bool`): Whether the reference is the learner's backbone (`reference="adapter"`). It is then asked
            through the wrapped learner, in which engines gather their parameters.
    """

    def __init__(self, view: DualEncoder, model: nn.Module, shared: bool = False) -> None:
        self.view = view
        self.model = model
        self.shared = shared
        self.cached: ContrastiveEmbeddings | None = None

    def embed(self, learner: nn.Module, batch: Mapping[str, Tensor], batch_size: int) -> ContrastiveEmbeddings:
        """The reference's embeddings of a super-batch, on its device; `learner` is the wrapped one of the step."""
        if self.cached is not None:
            return self.cached.take(batch["example_id"].cpu()).to(batch["example_id"].device)
        if not self.shared:
            return self.view.embed(self.model, batch, batch_size)
        with as_reference(self.model):
            return self.view.embed(learner, batch, batch_size)

    def cache(self, *args: Any, **kwargs: Any) -> None:
        """Embed the training rows once and answer from memory from then on; arguments as those of [`embed_rows`]."""
        if self.shared:
            with as_reference(self.model):
                self.cached = embed_rows(self.view, self.model, *args, **kwargs)
        else:
            self.cached = embed_rows(self.view, self.model, *args, **kwargs)


__all__ = ["Reference"]
