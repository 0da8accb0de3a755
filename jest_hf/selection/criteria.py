# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Criteria: how an example's score is made of the losses of the learner and of the reference (arXiv 2406.17711).

`CRITERIA` is the registry. Everything that depends on a criterion reads it: which models score, the terms of a score,
the sentence in the model card, the metric that is plotted. To add a criterion, add an entry:

    from jest_hf.selection import CRITERIA, Criterion

    CRITERIA["twice_reference"] = Criterion("twice_reference", learner=1, reference=-2, title="learner - 2 reference")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor


if TYPE_CHECKING:
    from typing import Literal

    ScoringModel = Literal["learner", "reference"]


@dataclass(frozen=True)
class Criterion:
    """
    A score as a weighted sum of two losses: `learner * (learner's loss) + reference * (reference's loss)`.

    A criterion that is no weighted sum is a subclass that overrides [`~Criterion.own`] and sets `joint=False`: then it
    works with the selections that score each example by itself, such as `"independent"` and `"top_k"`.

    Args:
        name (`str`): The value of `JESTConfig.criterion` that selects this criterion.
        learner (`float`, *optional*, defaults to 0): Weight of the learner's loss. With 0 the learner does not score.
        reference (`float`, *optional*, defaults to 0): Weight of the reference's loss. With 0 no reference is needed.
        title (`str`, *optional*, defaults to `name`): The criterion in the words of a model card.
        shown (`str`, *optional*, defaults to `"learnability"`): Metric of selected and rejected examples that is
            plotted against the step: `"learnability"`, `"learner_loss"` or `"reference_loss"`.
        joint (`bool`, *optional*, defaults to `True`): Whether pairs of examples have scores too, as joint selection
            needs them.

    Raises:
        ValueError: if both weights are 0.
    """

    name: str
    learner: float = 0
    reference: float = 0
    title: str = ""
    shown: str = "learnability"
    joint: bool = True

    def __post_init__(self) -> None:
        if not self.learner and not self.reference:
            raise ValueError(
                f"criterion {self.name!r} has no weights; give learner or reference a weight other than 0."
            )
        if not self.title:
            object.__setattr__(self, "title", self.name)

    @property
    def weights(self) -> dict[ScoringModel, float]:
        """The weight of each model that scores, the learner's first."""
        weights: dict[ScoringModel, float] = {"learner": self.learner, "reference": self.reference}
        return {name: weight for name, weight in weights.items() if weight}

    def own(self, learner: Tensor | None, reference: Tensor | None) -> Tensor:
        """
        Return the score of each example by itself, float32 `[n]`.

        Args:
            learner (`torch.Tensor`, *optional*): The learner's loss of each example (of pairs, of each image with its
                own text), float32 `[n]`; `None` if the learner does not score.
            reference (`torch.Tensor`, *optional*): The reference's, likewise.
        """
        losses = {"learner": learner, "reference": reference}
        terms = [weight * losses[name] for name, weight in self.weights.items() if losses[name] is not None]
        return torch.stack(terms).sum(dim=0)


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion(
            "learnability",
            learner=1,
            reference=-1,
            title="learnability (loss of the learner minus loss of the reference)",
        ),
        Criterion(
            "easy_reference",
            reference=-1,
            title="easy reference (minus the loss of the reference)",
            shown="reference_loss",
        ),
        Criterion("hard_learner", learner=1, title="hard learner (loss of the learner)", shown="learner_loss"),
    )
}


__all__ = ["CRITERIA", "Criterion"]
