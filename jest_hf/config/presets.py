# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Published methods as values of `JESTConfig`: `preset="active_clip"` stands for these, and an option that is given
wins over its preset. What a paper leaves open is left to the defaults.
"""

from __future__ import annotations

from typing import Any


PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2406.17711, Algorithm 1 and sections 3 and 4.
    "jest": {"selection": "joint", "criterion": "learnability", "filter_ratio": 0.8},
    "flexi_jest": {
        "selection": "joint",
        "criterion": "learnability",
        "filter_ratio": 0.8,
        "scoring_view": "patch:32",
        "low_resolution_fraction": 0.5,
    },
    # arXiv 2312.05328: a small online model scores in the learner's place, each example alone.
    "active_clip": {
        "selection": "independent",
        "criterion": "learnability",
        "pair_score": "similarity",
        "scoring": "proxy",
        "filter_ratio": 0.5,
        "loss": "softmax",
    },
    "active_siglip": {
        "selection": "independent",
        "criterion": "learnability",
        "pair_score": "similarity",
        "scoring": "proxy",
        "filter_ratio": 0.5,
        "loss": "sigmoid",
    },
    "class_act": {
        "objective": "classification",
        "selection": "independent",
        "criterion": "learnability",
        "scoring": "proxy",
        "filter_ratio": 0.5,
        "label_smoothing_factor": 0.1,
    },
    # arXiv 2206.07137: the irreducible losses of a small hold-out model, computed once; the top tenth of each batch.
    "rho_loss": {
        "selection": "top_k",
        "criterion": "learnability",
        "filter_ratio": 0.9,
        "cache_reference": True,
    },
    # arXiv 2411.18674: a reference larger than the learner; learnability is its H-ACID, easy reference its I-ACID.
    "h_acid": {"selection": "joint", "criterion": "learnability", "filter_ratio": 0.8},
    "i_acid": {"selection": "joint", "criterion": "easy_reference", "filter_ratio": 0.8},
    "aced": {
        "selection": "joint",
        "criterion": "easy_reference",
        "filter_ratio": 0.8,
        "distillation_weight": 1.0,
    },
}

# What an option is where neither the run nor its preset says so. In `JESTConfig` these are `None` until they are set,
# so that a value that is given can be told from one that is not.
DEFAULTS: dict[str, Any] = {
    "selection": "joint",
    "criterion": "learnability",
    "filter_ratio": 0.8,
    "pair_score": "loss",
    "scoring": "learner",
    "label_smoothing_factor": 0.0,
    "low_resolution_fraction": 0.5,
    "distillation_weight": 0.0,
    "cache_reference": False,
}


__all__ = ["DEFAULTS", "PRESETS"]
