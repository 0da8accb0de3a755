# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Scoring a super-batch: the forward passes of the learner (or a proxy) and of the reference, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from jest_hf.batch import Scored, Scores, without_cached
from jest_hf.images.views import View
from jest_hf.models.reader import Reader
from jest_hf.reference.source import ReferenceSource


class Scorer:
    """Scores rows with the models that a selector needs.

    Args:
        reader ([`~jest_hf.models.reader.Reader`]): How the learner reads a super-batch.
        reference (`Callable`): Returns the [`~jest_hf.reference.ReferenceSource`] in use, or `None`. It is called each
            time, because a run replaces its reference once it is cached.
        batch_size (`int`): Rows in a forward.
        view ([`~jest_hf.models.View`], *optional*): The view of images at which the learner scores. Default: full
            resolution.
        proxy (`Callable`, *optional*): `proxy(rows, batch_size)` returns the scores of a small model, which replace
            the learner's.
        autocast (`Callable`, *optional*): Returns the context in which forwards run. Default: an empty one.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.batch import PointwiseLosses
    >>> from jest_hf.models.labelled import PointwiseReader
    >>> from jest_hf.scoring import Scorer
    >>> def small_model(rows, batch_size):
    ...     return PointwiseLosses(rows["length"].float())
    >>> scorer = Scorer(PointwiseReader(causal=True), lambda: None, batch_size=8, proxy=small_model)
    >>> scores = scorer.on(torch.nn.Identity(), {"length": torch.tensor([3, 5])})
    >>> scores(("learner",)).learner.losses
    tensor([3., 5.])

    ```
    """

    def __init__(
        self,
        reader: Reader,
        reference: Callable[[], ReferenceSource | None],
        *,
        batch_size: int,
        view: View | None = None,
        proxy: Callable[[Mapping[str, Tensor], int], Scored] | None = None,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.reader = reader
        self.reference = reference
        self.batch_size = batch_size
        self.view = view
        self.proxy = proxy
        self.autocast = autocast

    def on(self, model: nn.Module, rows: Mapping[str, Tensor]) -> ScoredRows:
        """Return the scores of rows; each is computed on first use. `model` is the learner as its engine wraps it."""
        return ScoredRows(self, model, rows)

    def score(self, name: str, model: nn.Module, rows: Mapping[str, Tensor]) -> Scored:
        """Score rows with `"learner"` or `"reference"`, on the device of the rows."""
        with self.autocast():
            if name == "learner":
                rows = without_cached(rows)
                if self.proxy is not None:
                    return self.proxy(rows, self.batch_size)
                return self.reader.score(model, rows, self.batch_size, self.view)
            source = self.reference()
            if source is None:
                raise ValueError("ref_model=None: the criterion needs scores of a reference; pass ref_model.")
            return source.score(model, rows, self.batch_size)


class ScoredRows:
    """The scores of some rows: `scores(("learner", "reference"))`. Each model scores them at most once."""

    def __init__(self, scorer: Scorer, model: nn.Module, rows: Mapping[str, Tensor]) -> None:
        self._scorer, self._model, self._rows = scorer, model, rows
        self._known: dict[str, Scored] = {}

    def __call__(self, models: tuple[str, ...]) -> Scores:
        for name in models:
            if name not in self._known:
                self._known[name] = self._scorer.score(name, self._model, self._rows)
        return Scores.of(self._known)


__all__ = ["ScoredRows", "Scorer"]
