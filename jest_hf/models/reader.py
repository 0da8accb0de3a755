# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How one model reads a super-batch: the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from jest_hf.models import View
from jest_hf.selection import Scored


class Reader(Protocol):
    """How one model (learner, proxy or reference) reads a super-batch."""

    def inputs(
        self,
        batch: Mapping[str, Tensor],
        rows: slice = slice(None),
        view: View | None = None,
        n_at_view: int | None = None,
    ) -> dict[str, Any]:
        """Arguments of the model's `forward` for some rows of a super-batch."""

    def __call__(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        rows: slice = slice(None),
        view: View | None = None,
        n_at_view: int | None = None,
    ) -> Any:
        """One forward of the model, wrapped or not, over these rows, with its graph."""

    def score(
        self, model: nn.Module, batch: Mapping[str, Tensor], batch_size: int, view: View | None = None
    ) -> Scored:
        """What the model has to say about a whole super-batch, without gradients and in eval mode."""
