# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pairwise scores of a super-batch: how much a sub-batch would teach, as a sum over its pairs.

Examples that make no pairs are the simple case: their conditional term is 0.

A score is the learner's loss minus the reference's (JEST, arXiv 2406.17711, section 3.1), or either of the two alone.
The sampler of Algorithm 1 sees only the two things it needs, the term of each candidate's own pair and the running
conditional term given the examples drawn so far, and does not know which loss, model or matrix they come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jest_hf.batch import ContrastiveEmbeddings, Scored
from jest_hf.selection.criteria import CRITERIA, Criterion
from jest_hf.selection.pair_terms import PAIR_LOSSES, MatrixPart, Part, PointwisePart, Running, model_part


LOSSES = (*PAIR_LOSSES, "similarity")


class PairwiseScores:
    """Scores of all pairs of a super-batch of B examples; built by [`from_embeddings`] or [`from_matrix`].

    Example:

    ```python
    scores = PairwiseScores.from_embeddings(learner=learner_embeddings, reference=reference_embeddings)
    indices = select_jointly(scores, size=len(scores) // 5)
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
    ) -> PairwiseScores:
        """Score by the losses of a learner and a reference; contrastive ones without ever forming `[B, B]` matrices.

        Args:
            learner ([`ContrastiveEmbeddings`] or [`PointwiseLosses`], *optional*): The learner's; not needed for
                `"easy_reference"`.
            reference ([`ContrastiveEmbeddings`] or [`PointwiseLosses`], *optional*): The reference's, of the same B
                examples in the same order; width, dtype, scale and bias are its own. Not needed for `"hard_learner"`.
            criterion (`str` or [`Criterion`], *optional*, defaults to `"learnability"`): One of `CRITERIA`:
                `"learnability"` (learner's loss minus reference's), `"easy_reference"` (minus the reference's loss),
                `"hard_learner"` (the learner's); or a criterion of your own.
            loss (`str`, *optional*, defaults to `"sigmoid"`): What embeddings are scored by: `"sigmoid"` (SigLIP) or
                `"softmax"` (CLIP), or `"similarity"`, minus the product of a pair's embeddings, which knows no
                negatives (ActiveCLIP, arXiv 2312.05328). [`PointwiseLosses`] need none.

        Raises:
            ValueError: for an unknown criterion or loss, a model that the criterion needs and that is missing, or
                learner and reference of different kinds, of different length or on different devices.
        """
        chosen = criterion if isinstance(criterion, Criterion) else CRITERIA.get(criterion)
        if chosen is None:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}.")
        models = {"learner": learner, "reference": reference}
        if loss not in LOSSES and any(isinstance(model, ContrastiveEmbeddings) for model in models.values()):
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}.")
        for name in chosen.weights:
            if models[name] is None:
                raise ValueError(f"criterion {chosen.name!r} needs the {name}'s embeddings: pass {name}=.")
        if len(chosen.weights) == 2:
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
        parts = {name: model_part(models[name], loss) for name in chosen.weights}
        if not chosen.joint:
            own = {name: parts[name].diagonal() if name in parts else None for name in models}
            return cls.from_pointwise(chosen.own(**own))
        return cls([(weight, parts[name]) for name, weight in chosen.weights.items()])

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> PairwiseScores:
        """Score by any matrix `[B, B]`: entry (i, j) is the score of image i with text j.

        Raises:
            ValueError: if the matrix is not square.
        """
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"a score matrix must be square, [B, B], got {list(matrix.shape)}.")
        return cls([(1, MatrixPart(matrix))])

    @classmethod
    def from_pointwise(cls, scores: Tensor) -> PairwiseScores:
        """Score each example alone, by a tensor `[B]`: pairs of different examples count nothing."""
        return cls([(1, PointwisePart(scores))])

    def __len__(self) -> int:
        return len(self._parts[0][1])

    def diagonal(self) -> Tensor:
        """Return the score of each example's own pair, float32 `[B]` (d in Algorithm 1)."""
        return torch.stack([sign * part.diagonal() for sign, part in self._parts]).sum(dim=0)

    @property
    def divisible(self) -> bool:
        """Whether ranks can each hold the scores of a share of the super-batch: by embeddings yes, by a matrix no."""
        return all(part.divisible for _, part in self._parts)

    def take(self, indices: Tensor) -> Tensor:
        """Return what the conditional terms need to know of the examples at `indices` (int64 `[m]`), `[m, K]`."""
        return torch.cat([part.take(indices) for _, part in self._parts], dim=1)

    def start(self) -> RunningScores:
        """Return the conditional term with nothing drawn yet; it is independent of any other started one."""
        return RunningScores([(sign, part.start(), part.width) for sign, part in self._parts])


class RunningScores:
    """The conditional term of every candidate given the examples drawn so far (a + c in Algorithm 1)."""

    def __init__(self, parts: Sequence[tuple[float, Running, int]]) -> None:
        self._signs, self._parts, self._widths = zip(*parts, strict=True)

    def add(self, drawn: Tensor) -> None:
        """Count examples, none of them added before, as drawn: what [`PairwiseScores.take`] says of them, `[m, K]`."""
        for part, columns in zip(self._parts, drawn.split(self._widths, dim=1), strict=True):
            part.add(columns)

    def total(self) -> Tensor:
        """Return the conditional term, float64 `[B]`: 0 before anything is drawn, meaningless for drawn examples."""
        return torch.stack([s * part.total() for s, part in zip(self._signs, self._parts, strict=True)]).sum(dim=0)


__all__ = ["LOSSES", "PairwiseScores", "RunningScores"]
