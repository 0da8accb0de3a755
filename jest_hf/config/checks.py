# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What can be known to be wrong with a `JESTConfig` by itself: each check is one sentence with a way out."""

from __future__ import annotations

import math
from collections.abc import Collection

from jest_hf.config.options import JESTOptions
from jest_hf.losses import LOSSES
from jest_hf.models.labelled import KINDS
from jest_hf.selection import CRITERIA, SELECTIONS, Selector


# An `objective` is checked when the trainer is made: it may be one that is registered later.
CHOICES: dict[str, Collection[str]] = {
    "selection": SELECTIONS,
    "criterion": CRITERIA,
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
    """One of several words."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}.")


def check_selection(args: JESTOptions) -> None:
    """Words and numbers, and those that contradict each other, of what decides which examples are trained on."""
    for name, choices in CHOICES.items():
        if getattr(args, name) is not None:
            check_choice(name, getattr(args, name), choices)
    if not 0.0 <= args.filter_ratio < 1.0:
        raise ValueError(
            f"filter_ratio={args.filter_ratio} must be in [0, 1): it is the share of the super-batch that is not "
            "trained on; 0.8 trains on a fifth of it, and selection='uniform' trains without selecting."
        )
    for name, meaning in FRACTIONS.items():
        if not 0.0 <= getattr(args, name) <= 1.0:
            raise ValueError(f"{name}={getattr(args, name)} must be in [0, 1]: it is {meaning}.")
    for name in ("n_chunks", "per_device_train_batch_size"):
        _check_whole(name, getattr(args, name), at_least=1)
    size = args.per_device_train_batch_size
    if SELECTIONS[args.selection].scores and args.filter_ratio > 0 and args.per_device_super_batch_size == size:
        raise ValueError(
            f"filter_ratio={args.filter_ratio} leaves nothing to select from: with per_device_train_batch_size={size} "
            "the super-batch is no larger than the sub-batch; raise one of them, or set selection='uniform'."
        )
    for name in ("loss_tile_size", "scoring_batch_size", "gradient_cache_chunk_size"):
        if getattr(args, name) is not None:
            _check_whole(name, getattr(args, name), at_least=1)
    for name in ("selection_warmup_steps", "filter_ratio_ramp_steps"):
        _check_whole(name, getattr(args, name), at_least=0)
    if not (math.isfinite(args.selection_gain) and args.selection_gain > 0):
        raise ValueError(
            f"selection_gain={args.selection_gain} must be a finite number above 0: it multiplies the scores; "
            "use criterion or selection='uniform' to change what is selected."
        )
    if SELECTIONS[args.selection].needs_pairs and args.pair_score == "similarity":
        raise ValueError(
            f"pair_score='similarity' scores no pair of different examples, and selection={args.selection!r} needs "
            "such scores; set selection='independent' or 'top_k', or pair_score='loss'."
        )
    if SELECTIONS[args.selection].needs_pairs and args.objective in KINDS:
        raise ValueError(
            f"selection={args.selection!r} needs examples that make pairs, and those of objective={args.objective!r} "
            "stand alone; set selection='independent' or 'top_k'."
        )
    if SELECTIONS[args.selection].needs_pairs and not CRITERIA[args.criterion].joint:
        raise ValueError(
            f"criterion={args.criterion!r} scores each example by itself, and selection={args.selection!r} needs "
            "scores of pairs; set selection='independent' or 'top_k'."
        )
    for selector in args.compare_selectors or ():
        Selector.parse(selector)
    if args.compare_selectors and not SELECTIONS[args.selection].scores:
        raise ValueError(
            "compare_selectors needs scored super-batches, and selection='uniform' scores nothing; choose another "
            "selection, or leave compare_selectors out."
        )


def check_training(args: JESTOptions) -> None:
    """Options whose combination would train something else than what they say."""
    if args.eval_at_view and args.scoring_view is None:
        raise ValueError("eval_at_view=True needs a scoring_view to evaluate at, such as 'patch:32'; name one.")
    if args.scoring == "proxy" and args.scoring_view is not None:
        raise ValueError(
            f"scoring_view={args.scoring_view!r} is a view for the learner, and scoring='proxy' scores with another "
            "model; leave one of them out."
        )
    if args.scoring == "proxy" and SELECTIONS[args.selection].scores and not CRITERIA[args.criterion].learner:
        raise ValueError(
            f"scoring='proxy' trains a model that criterion={args.criterion!r} does not use; set scoring='learner', "
            "or another criterion."
        )
    if not (math.isfinite(args.distillation_weight) and args.distillation_weight >= 0):
        raise ValueError(f"distillation_weight={args.distillation_weight} must be a finite number of at least 0.")
    if args.distillation_weight > 0 and args.objective in KINDS:
        raise ValueError(
            f"distillation_weight={args.distillation_weight} is for contrastive batches, and not for "
            f"objective={args.objective!r}; set it to 0."
        )
    if args.reference == "online" and (args.cache_reference or args.reference_cache is not None):
        raise ValueError(
            "reference='online' learns as it goes, so what it says cannot be cached; leave cache_reference and "
            "reference_cache out."
        )
    for name in ("proxy_learning_rate", "online_reference_learning_rate"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value} must be a finite number of at least 0.")
    if args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps} would select from each part of a step's "
            "examples, and take its loss, without the others; set it to 1, and where memory is short use "
            "gradient_checkpointing=True, or for image-text pairs gradient_cache_chunk_size."
        )
    if args.remove_unused_columns:
        raise ValueError(
            "remove_unused_columns=True would drop the image and caption columns before the collator sees them; "
            "leave it at False."
        )
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size=True would change the sub-batch, and with it the loss and the selection, in the "
            "middle of a run; choose per_device_train_batch_size, and scoring_batch_size if scoring is too large."
        )


def _check_whole(name: str, value: int, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {at_least}.")


__all__ = ["check_choice", "check_selection", "check_training"]
