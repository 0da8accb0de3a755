# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run trains for: contrastive batches of image-text pairs, or examples that stand alone."""

from __future__ import annotations

from transformers import PreTrainedModel

from jest_hf.config import JESTConfig
from jest_hf.models import base_model
from jest_hf.models.dual_encoder import is_dual_encoder
from jest_hf.objectives.contrastive import ContrastiveObjective
from jest_hf.objectives.objective import Evaluated, Objective, Reader
from jest_hf.objectives.pointwise import PointwiseObjective, PointwiseReader, kind_of


def objective_of(args: JESTConfig, model: PreTrainedModel | None) -> Objective:
    """
    The objective that the run names, or that its learner is made for.

    Args:
        args ([`JESTConfig`]): `args.objective` and the options that belong to one.
        model ([`~transformers.PreTrainedModel`], *optional*): The learner, where one was passed.

    Raises:
        ValueError: for options that the objective has no use for.
    """
    name = args.objective
    if name is None and model is not None and not is_dual_encoder(base_model(model)):
        name = kind_of(model)
    if name in (None, "contrastive"):
        return ContrastiveObjective(args, None if model is None else base_model(model).config)
    if model is None:
        raise ValueError(f"objective={name!r} needs the learner's classes from the start; pass model or model_init.")
    _check_pointwise(args, name)
    return PointwiseObjective(name, base_model(model).config, args.label_smoothing_factor)


def _check_pointwise(args: JESTConfig, name: str) -> None:
    """Options that are about pairs."""
    if args.selection == "joint":
        raise ValueError(
            f"selection='joint' needs examples that make pairs, and those of objective={name!r} stand alone; set "
            "selection='independent' or 'top_k'."
        )
    for option, without in (
        ("scoring_view", None),
        ("gradient_cache_chunk_size", None),
        ("reference_cache", None),
        ("loss", None),
        ("distillation_weight", 0.0),
        ("pair_score", "loss"),
    ):
        if getattr(args, option) != without:
            raise ValueError(
                f"{option}={getattr(args, option)!r} is for image-text pairs, and objective={name!r} has none; leave "
                "it out."
            )


__all__ = [
    "ContrastiveObjective",
    "Evaluated",
    "Objective",
    "PointwiseObjective",
    "PointwiseReader",
    "Reader",
    "objective_of",
]
