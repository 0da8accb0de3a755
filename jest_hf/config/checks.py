# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The checks that need a `JESTConfig` alone: no model, no data. Each error is one sentence with a way out."""

from __future__ import annotations

import math
from collections.abc import Collection

from jest_hf.config.inherited import check_inherited
from jest_hf.config.options import JESTOptions, SelectionSettings
from jest_hf.losses import LOSSES
from jest_hf.models.labelled import KINDS
from jest_hf.selection import CRITERIA, SELECTIONS, Selector
from jest_hf.selection.arithmetic import PRECISIONS


# `objective` is checked when the trainer is made: a user may register an objective after making the arguments.
CHOICES: dict[str, Collection[str]] = {
    "selection": SELECTIONS,
    "criterion": CRITERIA,
    "selection_precision": PRECISIONS,
    "selection_scope": ("global", "local"),
    "pair_score": ("loss", "similarity"),
    "scoring": ("learner", "proxy"),
    "loss": LOSSES,
    "loss_exchange": ("gather", "ring"),
    "reference": ("model", "adapter", "online"),
    "ref_placement": ("replica", "sharded"),
}
FRACTIONS = {
    "uniform_fraction": "the part of the sub-batch that is drawn uniformly",
    "low_resolution_fraction": "the part of the sub-batch that is trained on at the scoring view",
}


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise a `ValueError` unless the option `name` has one of the values in `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}.")


def check_selection(args: JESTOptions, settings: SelectionSettings) -> None:
    """Check the options that decide which examples are trained on: each value, and the values together.

    Args:
        args ([`JESTConfig`]): The options.
        settings ([`SelectionSettings`]): The same options as far as a preset can fill them in, filled in.

    Raises:
        ValueError: for an unknown or impossible value, and for options that contradict each other.
    """
    for name, choices in CHOICES.items():
        if getattr(args, name) is not None:
            check_choice(name, getattr(args, name), choices)
    if not 0.0 <= settings.filter_ratio < 1.0:
        raise ValueError(
            f"filter_ratio={settings.filter_ratio} must be in [0, 1): it is the share of the super-batch that is not "
            "trained on; 0.8 trains on a fifth of it, and selection='uniform' trains without selecting."
        )
    for name, meaning in FRACTIONS.items():
        if not 0.0 <= getattr(args, name) <= 1.0:
            raise ValueError(f"{name}={getattr(args, name)} must be in [0, 1]: it is {meaning}.")
    for name in ("n_chunks", "per_device_train_batch_size"):
        _check_whole(name, getattr(args, name), at_least=1)
    selector, size = SELECTIONS[settings.selection], args.per_device_train_batch_size
    if selector.scores and settings.filter_ratio > 0 and settings.super_batch_size(size) == size:
        raise ValueError(
            f"filter_ratio={settings.filter_ratio} leaves nothing to select from: with "
            f"per_device_train_batch_size={size} the super-batch is no larger than the sub-batch; raise one of them, "
            "or set selection='uniform'."
        )
    for name in ("loss_tile_size", "scoring_batch_size", "gradient_cache_chunk_size"):
        if getattr(args, name) is not None:
            _check_whole(name, getattr(args, name), at_least=1)
    _check_prefilter(args, settings)
    for name in ("selection_warmup_steps", "filter_ratio_ramp_steps"):
        _check_whole(name, getattr(args, name), at_least=0)
    if not (math.isfinite(args.selection_gain) and args.selection_gain > 0):
        raise ValueError(
            f"selection_gain={args.selection_gain} must be a finite number above 0: it multiplies the scores; "
            "use criterion or selection='uniform' to change what is selected."
        )
    if selector.needs_pairs:
        _check_joint(args, settings)
    for name in args.compare_selectors or ():
        Selector.parse(name)
    if args.compare_selectors and not selector.scores:
        raise ValueError(
            "compare_selectors needs scored super-batches, and selection='uniform' scores nothing; choose another "
            "selection, or leave compare_selectors out."
        )


def _check_joint(args: JESTOptions, settings: SelectionSettings) -> None:
    """Check that every two examples of a super-batch have a score as a pair."""
    joint = f"selection={settings.selection!r}"
    if settings.pair_score == "similarity":
        raise ValueError(
            f"pair_score='similarity' gives no score to a pair of different examples, and {joint} needs such scores; "
            "set selection='independent' or 'top_k', or pair_score='loss'."
        )
    if args.objective in KINDS:
        raise ValueError(
            f"{joint} needs pairs of images and texts, and objective={args.objective!r} has no pairs; set "
            "selection='independent' or 'top_k'."
        )
    if not CRITERIA[settings.criterion].joint:
        raise ValueError(
            f"criterion={settings.criterion!r} scores each example by itself, and {joint} needs scores of pairs; set "
            "selection='independent' or 'top_k'."
        )


def _check_prefilter(args: JESTOptions, settings: SelectionSettings) -> None:
    """Check the first of two stages: it needs cached scores, and must drop something."""
    ratio = settings.prefilter_ratio
    if not 0.0 <= ratio < 1.0:
        raise ValueError(
            f"prefilter_ratio={ratio} must be in [0, 1): it is the share of the candidates that fall before the "
            "super-batch is decoded; 0.8 keeps a fifth of them, and 0 keeps all."
        )
    if ratio == 0:
        return
    if not SELECTIONS[settings.selection].scores:
        raise ValueError(
            f"prefilter_ratio={ratio} has no use with selection={settings.selection!r}, which selects nothing; set it "
            "to 0, or choose another selection."
        )
    if not settings.cache_reference and args.reference_cache is None:
        raise ValueError(
            f"prefilter_ratio={ratio} needs the scores of a cached reference; set cache_reference=True, or "
            "reference_cache to a cache of the training data."
        )
    size = settings.super_batch_size(args.per_device_train_batch_size)
    if settings.candidates(size) <= size:
        raise ValueError(
            f"prefilter_ratio={ratio} drops nothing: of a super-batch of {size} rows there are no more candidates; "
            "raise it, or set it to 0."
        )


def check_training(args: JESTOptions, settings: SelectionSettings) -> None:
    """Check the options of scoring and training, and refuse combinations whose effect would surprise.

    Args:
        args ([`JESTConfig`]): The options, after [`check_selection`].
        settings ([`SelectionSettings`]): The same options as far as a preset can fill them in, filled in.

    Raises:
        ValueError: for an impossible value, and for options that contradict each other.
    """
    if args.eval_at_view and args.scoring_view is None:
        raise ValueError("eval_at_view=True needs a scoring_view to evaluate at; set one, such as 'patch:32'.")
    if settings.scoring == "proxy":
        if args.scoring_view is not None:
            raise ValueError(
                f"scoring_view={args.scoring_view!r} is a view for the learner, and scoring='proxy' scores with "
                "another model; leave one of them out."
            )
        if SELECTIONS[settings.selection].scores and not CRITERIA[settings.criterion].learner:
            raise ValueError(
                f"scoring='proxy' trains a model that criterion={settings.criterion!r} does not use; set "
                "scoring='learner', or another criterion."
            )
    if not (math.isfinite(settings.distillation_weight) and settings.distillation_weight >= 0):
        raise ValueError(f"distillation_weight={settings.distillation_weight} must be a finite number of at least 0.")
    if settings.distillation_weight > 0 and args.objective in KINDS:
        raise ValueError(
            f"distillation_weight={settings.distillation_weight} needs pairs of images and texts, and "
            f"objective={args.objective!r} has no pairs; set it to 0."
        )
    if args.reference == "online" and (args.cache_reference or args.reference_cache is not None):
        raise ValueError(
            "reference='online' is trained during the run, so its scores cannot be cached; leave out cache_reference "
            "and reference_cache."
        )
    for name in ("proxy_learning_rate", "online_reference_learning_rate"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value} must be a finite number of at least 0.")
    if args.image_cache is not None and not args.image_cache:
        raise ValueError("image_cache='' must be the path of a folder; leave it out to decode images in every epoch.")
    check_inherited(args)


def _check_whole(name: str, value: int, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {at_least}.")


__all__ = ["check_choice", "check_selection", "check_training"]
