# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run trains for: contrastive batches of image-text pairs, or examples with a loss each."""

from __future__ import annotations

from jest_hf.models.labelled import PointwiseReader
from jest_hf.models.reader import Reader
from jest_hf.moved import moved
from jest_hf.objectives.contrastive import ContrastiveObjective
from jest_hf.objectives.objective import OBJECTIVES, Collator, Evaluated, Objective, ObjectiveOptions, find_objective
from jest_hf.objectives.pointwise import PointwiseObjective


__all__ = [
    "OBJECTIVES",
    "Collator",
    "ContrastiveObjective",
    "Evaluated",
    "Objective",
    "ObjectiveOptions",
    "PointwiseObjective",
    "PointwiseReader",
    "Reader",
    "find_objective",
]

__getattr__ = moved(__name__, {"objective_of": "jest_hf.training.objective"})
