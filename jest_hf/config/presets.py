# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Published methods as options of `JESTConfig`: `preset="active_clip"` sets the options listed here.

An option that is given wins over the preset. What a paper leaves open is left to the defaults.
"""

from __future__ import annotations

from typing import Any


PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2406.17711, Algorithm 1 and sections 3 and 4.
    "jest": {"selection": "joint", "criterion": "learnability", "filter_ratio": 0.8},
    # Two stages, 10 : 2 : 1. The cached reference keeps a fifth of the candidates before anything is decoded, and
    # learner and reference choose half of the rest: 1 + 2/3 of an IID step for any number of candidates.
    "two_stage": {
        "selection": "joint",
        "criterion": "learnability",
        "filter_ratio": 0.5,
        "prefilter_ratio": 0.8,
        "cache_reference": True,
    },
    "flexi_jest": {
        "selection": "joint",
        "criterion": "learnability",
        "filter_ratio": 0.8,
        "scoring_view": "patch:32",
        "low_resolution_fraction": 0.5,
    },
    # arXiv 2312.05328: a small model, trained beside the learner, scores each example alone.
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
    # arXiv 2206.07137: irreducible losses of a small hold-out model, computed once; the top tenth of each super-batch.
    "rho_loss": {
        "selection": "top_k",
        "criterion": "learnability",
        "filter_ratio": 0.9,
        "cache_reference": True,
    },
    # arXiv 2411.18674: a reference larger than the learner. H-ACID is learnability, I-ACID is easy reference.
    "h_acid": {"selection": "joint", "criterion": "learnability", "filter_ratio": 0.8},
    "i_acid": {"selection": "joint", "criterion": "easy_reference", "filter_ratio": 0.8},
    "aced": {
        "selection": "joint",
        "criterion": "easy_reference",
        "filter_ratio": 0.8,
        "distillation_weight": 1.0,
    },
}

# Values of options that neither the run nor its preset sets. The fields of `JESTConfig` start as `None`, so that an
# option that is given can be told from one that is not.
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
    "prefilter_ratio": 0.0,
}


__all__ = ["DEFAULTS", "PRESETS"]
