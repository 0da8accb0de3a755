# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
Two mistakes that change the order of random numbers and nothing else, which the matrix has to show.

A matrix that cannot see these two proves little: with dropout the order of draws decides every weight. So
`make same-mutations` runs the matrix with each, and asks that the runs with dropout differ, and no others.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.invariant.matrix import COMPANIONS_LAST, STRAY_NUMBER


class CompanionsLast:
    """To be mixed in: proxy and online reference are stepped after the learner's forward and backward."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        owner, name = stepped_by(self)
        if owner is None:
            return super().training_step(*args, **kwargs)
        step, self.waiting = getattr(owner, name), []

        def later(*late: Any, **more: Any) -> dict[str, float]:
            self.waiting.append((step, late, more))
            return {}  # no losses yet

        object.__setattr__(owner, name, later)  # a frozen dataclass takes no ordinary assignment
        try:
            return super().training_step(*args, **kwargs)
        finally:
            object.__delattr__(owner, name)  # and the method of the class is back

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().learn(*args, **kwargs)
        for step, late, more in getattr(self, "waiting", ()):
            # A step returns its losses for the log, or has logged them itself and returns nothing.
            self.statistics.add(step(*late, **more) or {})
        return loss


class StrayNumber:
    """To be mixed in: one random number is drawn before the learner's forward."""

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return super().learn(*args, **kwargs)


MUTATIONS: dict[str, type] = {COMPANIONS_LAST: CompanionsLast, STRAY_NUMBER: StrayNumber}


def stepped_by(trainer: Any) -> tuple[Any, str]:
    """
    The object and the name of its method that steps proxy and online reference; `None` for a run without either.

    Raises:
        AttributeError: where the trainer has none of the known methods: this function must then follow the code.
    """
    if not trainer.online_models:
        return None, ""
    holders = (getattr(trainer, name, None) for name in ("parts", "plan"))
    companions = [holder.companions for holder in holders if hasattr(holder, "companions")]
    for owner, name in (*((one, "step") for one in companions), (trainer, "train_beside")):
        if hasattr(owner, name):
            return owner, name
    raise AttributeError("the trainer steps its companions by no method that `stepped_by` knows; add the method.")
