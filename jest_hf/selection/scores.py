# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pairwise scores of a super-batch: the score of a sub-batch is the sum over its pairs.

A score is the learner's loss minus the reference's (JEST, arXiv 2406.17711, section 3.1), or either of the two alone.
The sampler of Algorithm 1 uses two terms of each candidate: that of its own pair, and the running conditional term
given the examples drawn so far. The sampler does not depend on the loss, model or matrix behind them. For examples
without pairs the conditional term is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jest_hf.batch import ContrastiveEmbeddings, Scored
from jest_hf.selection.arithmetic import PRECISIONS
from jest_hf.selection.criteria import CRITERIA, Criterion, ScoringModel
from jest_hf.selection.pair_terms import PAIR_LOSSES, MatrixPart, Part, PointwisePart, Running, model_part


LOSSES = (*PAIR_LOSSES, "similarity")


class PairwiseScores:
    """Scores of all pairs of a super-batch of B examples.

    Built by [`from_embeddings`], [`from_matrix`] or [`from_pointwise`].

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.selection import ContrastiveEmbeddings, PairwiseScores, select_jointly
    >>> learner = ContrastiveEmbeddings(torch.eye(4), torch.eye(4).roll(1, 0), logit_scale=10.0, logit_bias=-10.0)
    >>> reference = ContrastiveEmbeddings(torch.eye(4), torch.eye(4), logit_scale=10.0, logit_bias=-10.0)
    >>> scores = PairwiseScores.from_embeddings(learner, reference)
    >>> scores.diagonal()
    tensor([9.3069, 9.3069, 9.3069, 9.3069])
    >>> len(select_jointly(scores, size=2))
    2

    ```
    """

    def __init__(self, parts: Sequence[tuple[float, Part]]) -> None:
        self._parts = tuple(parts)

    @classmethod
    def from_embeddings(
        cls,
        learner: Scored | None = None,
        reference: Scored | None = None,
        criterion: str | Criterion | None = "learnability",
        loss: str | None = "sigmoid",
        precision: str = "float32",
    ) -> PairwiseScores:
        """Score by the losses of a learner and a reference; contrastive ones without ever forming `[B, B]` matrices.

        Args:
            learner ([`ContrastiveEmbeddings`] or [`PointwiseLosses`], *optional*): What the learner computed of the B
                examples. Not needed for `"easy_reference"`.
            reference ([`ContrastiveEmbeddings`] or [`PointwiseLosses`], *optional*): What the reference computed of
                the same B examples in the same order; width, dtype, scale and bias may differ from the learner's. Not
                needed for `"hard_learner"`.
            criterion (`str` or [`Criterion`], *optional*, defaults to `"learnability"`): One of `CRITERIA`:
                `"learnability"` (the learner's loss minus the reference's), `"easy_reference"` (minus the reference's
                loss), `"hard_learner"` (the learner's loss); or a criterion of your own.
            loss (`str`, *optional*, defaults to `"sigmoid"`): Loss of embeddings: `"sigmoid"` (SigLIP), `"softmax"`
                (CLIP) or `"similarity"`, which is minus the product of a pair's embeddings, without negatives
                (ActiveCLIP, arXiv 2312.05328). Ignored for [`PointwiseLosses`].
            precision (`str`, *optional*, defaults to `"float32"`): In which precision the embeddings of different
                examples are multiplied: `"float32"`, `"tf32"` (on a CUDA device; elsewhere float32) or `"bfloat16"`.
                The products are summed in float32 in each, and the scores of own pairs are always float32.

        Raises:
            ValueError: for an unknown criterion, loss or precision, a model that the criterion needs and that is
                missing, or learner and reference of different kinds, of different length or on different devices.
        """
        chosen = criterion if isinstance(criterion, Criterion) else CRITERIA.get(criterion or "")
        if chosen is None:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}.")
        models: dict[ScoringModel, Scored | None] = {"learner": learner, "reference": reference}
        if loss not in LOSSES and any(isinstance(model, ContrastiveEmbeddings) for model in models.values()):
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}.")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
        scored: dict[ScoringModel, Scored] = {}
        for name in chosen.weights:
            model = models[name]
            if model is None:
                raise ValueError(f"criterion {chosen.name!r} needs the {name}'s embeddings: pass {name}=.")
            scored[name] = model
        if len(scored) == 2:
            _check_alike(scored["learner"], scored["reference"])
        parts = {name: model_part(model, loss or "", precision) for name, model in scored.items()}
        if not chosen.joint:
            own = {name: part.diagonal() for name, part in parts.items()}
            return cls.from_pointwise(chosen.own(own.get("learner"), own.get("reference")))
        return cls([(weight, parts[name]) for name, weight in chosen.weights.items()])

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> PairwiseScores:
        """Score by a matrix `[B, B]`: entry (i, j) is the score of image i with text j.

        Raises:
            ValueError: if the matrix is not square.
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"a score matrix must be square, [B, B], got {list(matrix.shape)}.")
        return cls([(1, MatrixPart(matrix))])

    @classmethod
    def from_pointwise(cls, scores: Tensor) -> PairwiseScores:
        """Score each example by itself, by a tensor `[B]`; pairs of different examples have the score 0."""
        return cls([(1, PointwisePart(scores))])

    def __len__(self) -> int:
        return len(self._parts[0][1])

    def diagonal(self) -> Tensor:
        """Return the score of each example's own pair, float32 `[B]` (d in Algorithm 1)."""
        return torch.stack([weight * part.diagonal() for weight, part in self._parts]).sum(dim=0)

    @property
    def divisible(self) -> bool:
        """Whether each rank can hold the scores of its share alone: `False` for a score matrix, else `True`."""
        return all(part.divisible for _, part in self._parts)

    def take(self, indices: Tensor) -> Tensor:
        """Return the rows that the conditional terms need for the examples at `indices` (int64 `[m]`), `[m, K]`."""
        return torch.cat([part.take(indices) for _, part in self._parts], dim=1)

    def start(self) -> RunningScores:
        """Return a conditional term with nothing drawn; each call returns a new one."""
        return RunningScores([(weight, part.start(), part.width) for weight, part in self._parts])


class RunningScores:
    """The conditional term of every candidate given the examples drawn so far (a + c in Algorithm 1)."""

    def __init__(self, parts: Sequence[tuple[float, Running, int]]) -> None:
        self._parts = [(weight, part) for weight, part, _ in parts]
        self._widths = [width for _, _, width in parts]

    def add(self, drawn: Tensor) -> None:
        """Add examples that were not added before, given as the rows of [`PairwiseScores.take`], `[m, K]`."""
        for (_, part), columns in zip(self._parts, torch.split(drawn, self._widths, dim=1), strict=True):
            part.add(columns)

    def total(self) -> Tensor:
        """Return the conditional term, float64 `[B]` (float32 on MPS): 0 before anything is drawn, undefined for drawn
        examples."""
        first, *others = (weight * part.total() for weight, part in self._parts)
        for other in others:
            first += other
        return first


def _check_alike(learner: Scored, reference: Scored) -> None:
    """Raise a `ValueError` unless both score the same examples, in the same way, on the same device."""
    if type(learner) is not type(reference):
        raise ValueError(
            "learner and reference must both embed pairs or both have losses, got "
            f"{type(learner).__name__} and {type(reference).__name__}."
        )
    if len(learner) != len(reference):
        raise ValueError(
            f"learner and reference must embed the same examples, got {len(learner)} and {len(reference)}."
        )
    if learner.device != reference.device:
        raise ValueError(
            "learner and reference embeddings must be on one device, got "
            f"{learner.device} and {reference.device}: move one of them."
        )


__all__ = ["LOSSES", "PairwiseScores", "RunningScores"]
