# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The objective of a run, from its options and its learner."""

from __future__ import annotations

from torch import nn

from jest_hf.config import JESTConfig
from jest_hf.models import base_model
from jest_hf.objectives import Objective, ObjectiveOptions, find_objective
from jest_hf.training.checks import check_options


def objective_of(args: JESTConfig, model: nn.Module | None) -> Objective:
    """
    Make the objective that the run names, or the one that its learner is made for.

    Args:
        args ([`JESTConfig`]): `args.objective` and the options that belong to one.
        model ([`~transformers.PreTrainedModel`], *optional*): The learner, where one was passed.

    Raises:
        ValueError: for an unknown objective, and for options without use with this one.
    """
    base = None if model is None else base_model(model)
    objective = find_objective(args.objective, base)
    check_options(args, objective)
    settings = args.settings
    return objective.make(
        base,
        ObjectiveOptions(
            loss=args.loss,
            loss_tile_size=args.loss_tile_size,
            loss_exchange=args.loss_exchange,
            distillation_weight=settings.distillation_weight,
            label_smoothing=settings.label_smoothing_factor,
            views=args.scoring_view is not None,
            eval_group_column=args.eval_group_column,
            sub_batch_size=args.sub_batch_size,
        ),
    )


__all__ = ["objective_of"]
