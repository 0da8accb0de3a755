# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The matrix: every tiny run by its name. A new option of a run that can change a result belongs in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from tests.invariant import tiny


# Mutations, by the names that `mutations` has for them.
COMPANIONS_LAST = "companions_last"
STRAY_NUMBER = "stray_number"

SETTINGS = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 5,
    "n_chunks": 4,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "record_selection": True,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "ddp_timeout": 60,  # seconds: a rank that has failed must not keep the other waiting
}
LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2, "init_lora_weights": False}

Make = Callable[[], Any]


@dataclass(frozen=True)
class Run:
    """
    A tiny run of [`~jest_hf.JESTTrainer`]. What is a function is called in the process that trains.

    Args:
        settings (`dict`): Of `JESTConfig`, beside `SETTINGS`.
        model, reference, processor, rows, evaluated: Functions that make the Trainer's arguments of these names.
        options: A function that makes further arguments of the Trainer.
        resumed_at (`int`, *optional*): The step whose checkpoint a second trainer resumes from.
        predicts (`bool`): Whether `predict` is called as well.
        zero_shot (`bool`): Whether a `ZeroShotCallback` is added.
        leaves (`tuple`): Items that its record must have beside those of all runs: `"companions"`, `"cache"`.
        seen_by (`tuple`): The mutations that must change this run, and not its random state alone.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    model: Make = tiny.siglip
    reference: Make = partial(tiny.siglip, 1)
    processor: Make = tiny.siglip_processor
    rows: Make = tiny.pairs
    evaluated: Make | None = partial(tiny.pairs, 13, seed=9)
    options: Make = dict
    resumed_at: int | None = None
    predicts: bool = False
    zero_shot: bool = False
    leaves: tuple[str, ...] = ()
    seen_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cached(Run):
    """`jest-hf cache-reference` makes a cache, from which a run then reads; the reference may be left out."""

    flags: tuple[str, ...] = ("--dtype", "float16", "--shard_rows", "40")
    reference: Make = lambda: None
    leaves: tuple[str, ...] = ("cache",)


def labelled(model: Callable[[int], PreTrainedModel], **changes: Any) -> Run:
    """A run whose examples have labels."""
    images = model is tiny.vit
    make_rows = tiny.labelled_images if images else tiny.texts
    defaults = {
        "model": partial(model, 0),
        "reference": partial(model, 1),
        "processor": tiny.vit_processor if images else tiny.tokenizer,
        "rows": make_rows,
        "evaluated": partial(make_rows, 13, seed=9),
    }
    return Run(**defaults | changes)


def adapted(seed: int) -> PreTrainedModel:
    """A SigLIP with an adapter of random weights."""
    model = tiny.siglip(0)
    tiny.torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(**LORA))


def accuracy(prediction: Any) -> dict[str, float]:
    """A `compute_metrics` of one's own."""
    return {"own_accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def grouped(n: int, seed: int) -> list[dict[str, Any]]:
    return [{**row, "group": row["source"]} for row in tiny.captioned(n, seed)]


def sourced() -> Any:
    """A table, as sources are read from, of which some rows are broken."""
    return tiny.table(tiny.broken_pairs())


CLIP = {"model": tiny.clip, "reference": partial(tiny.clip, 1), "processor": tiny.clip_processor}
NAFLEX = {"model": tiny.siglip2, "reference": partial(tiny.siglip2, 1), "processor": tiny.siglip2_processor}
DROPOUT = {"model": partial(tiny.siglip, dropout=0.2), "reference": partial(tiny.siglip, 1, dropout=0.2)}
BESIDE = {"leaves": ("companions",)}
CACHED = {"leaves": ("cache",)}
BOTH = {**BESIDE, "seen_by": (COMPANIONS_LAST, STRAY_NUMBER)}
HARD = {"criterion": "hard_learner"}

RUNS: dict[str, Run] = {
    # ---- The presets ----
    "preset_jest": Run({"preset": "jest"}),
    "preset_flexi_jest": Run({"preset": "flexi_jest", "scoring_view": "patch:16"}),
    "preset_active_clip": Run({"preset": "active_clip"}, **CLIP, **BESIDE),
    "preset_active_siglip": Run({"preset": "active_siglip"}, **BESIDE),
    "preset_class_act": labelled(tiny.vit, settings={"preset": "class_act"}, **BESIDE),
    "preset_rho_loss": labelled(
        tiny.vit, settings={"preset": "rho_loss"}, rows=partial(tiny.labelled_images, 170), **CACHED
    ),
    "preset_h_acid": Run({"preset": "h_acid"}),
    "preset_i_acid": Run({"preset": "i_acid"}),
    "preset_aced": Run({"preset": "aced"}),
    # ---- What scores, and what is selected ----
    "cached_reference": Run({"cache_reference": True}, rows=tiny.captioned, **CACHED),
    "online_reference": Run({"reference": "online"}, **BESIDE),
    "online_reference_fresh": Run(
        {"reference": "online", "online_reference_learning_rate": 5e-3}, reference=lambda: None, **BESIDE
    ),
    "proxy_given": Run(
        {"scoring": "proxy", "proxy_learning_rate": 5e-3, "lr_scheduler_type": "cosine", "warmup_steps": 1},
        options=lambda: {"proxy_model": tiny.siglip(5)},
        **BESIDE,
    ),
    "local_scope": Run({"selection_scope": "local"}, rows=tiny.broken_pairs),
    "hard_learner_top_k": Run({**HARD, "selection": "top_k"}, reference=lambda: None),
    "independent_easy": Run({"selection": "independent", "criterion": "easy_reference", "selection_gain": 3.0}),
    "similarity_top_k": Run({"selection": "top_k", "pair_score": "similarity"}, **CLIP),
    "uniform": Run({"selection": "uniform", "source_column": "source"}, reference=lambda: None, rows=sourced),
    "uniform_fraction": Run({"uniform_fraction": 0.25, "filter_ratio": 0.5}),
    "warmup_and_ramp": Run(
        {"selection_warmup_steps": 1, "filter_ratio_ramp_steps": 3, "max_steps": 5}, rows=tiny.broken_pairs
    ),
    "compare_selectors": Run(
        {
            "compare_selectors": ["uniform", "joint/easy_reference", "independent/hard_learner", "top_k/learnability"],
            "source_column": "source",
        },
        rows=sourced,
    ),
    "scoring_batch_size": Run({"scoring_batch_size": 3, "n_chunks": 3, "seed": 7, "data_seed": 11}),
    # ---- The loss and how it is computed ----
    "distillation": Run({"distillation_weight": 0.5, "scoring_view": "image:8", **HARD}),
    "softmax_of_siglip": Run({"loss": "softmax", "loss_tile_size": 3, "loss_exchange": "ring"}),
    "gradient_cache": Run({"gradient_cache_chunk_size": 3, "loss_tile_size": 2}),
    "gradient_cache_at_view": Run(
        {"gradient_cache_chunk_size": 3, "scoring_view": "patch:16", "distillation_weight": 0.5}
    ),
    "bf16": Run({"bf16": True}),
    "bf16_clip_cached": Run({"bf16": True, "cache_reference": True, "scoring_view": "image:8"}, **CLIP, **CACHED),
    # ---- Random numbers: their order must not change ----
    "dropout_proxy": Run({"scoring": "proxy"}, **DROPOUT, **BOTH),
    "dropout_online": Run({"reference": "online"}, **DROPOUT, **BOTH),
    "dropout_resumed": Run({"reference": "online", "scoring": "proxy"}, **DROPOUT, resumed_at=2, **BOTH),
    "dropout_gradient_cache": Run({"gradient_cache_chunk_size": 3}, **DROPOUT, seen_by=(STRAY_NUMBER,)),
    # ---- Data ----
    "broken_rows": Run(rows=tiny.broken_pairs, evaluated=partial(tiny.broken_pairs, 13, seed=9)),
    "source_column": Run({"source_column": "source"}, rows=sourced),
    "several_captions": Run(
        {"eval_group_column": "group"}, rows=tiny.captioned, evaluated=partial(grouped, 13, seed=9), predicts=True
    ),
    "stream": Run(rows=tiny.shuffled_stream),
    "stream_resumed": Run(rows=lambda: tiny.Stream(tiny.broken_pairs()), resumed_at=2),
    "loader_workers": Run({"dataloader_num_workers": 2}, rows=tiny.captioned),
    "late_images": Run({**HARD, "scoring_view": "image:8"}, rows=tiny.photographs),
    "late_images_cached": Run({"scoring_view": "image:8", "cache_reference": True}, rows=tiny.photographs, **CACHED),
    "early_images": Run({"scoring_view": "image:8", "low_resolution_fraction": 0.25}, rows=tiny.photographs),
    "resumed": Run({"source_column": "source"}, rows=sourced, resumed_at=2),
    # ---- Models ----
    "reference_reads_by_itself": Run(
        reference=partial(tiny.siglip, 1, size=24, length=6),
        options=lambda: {"ref_processing_class": tiny.siglip_processor(24, 6)},
    ),
    "models_by_path": Run(
        model=lambda: tiny.saved("learner", tiny.siglip(0), tiny.siglip_processor()),
        reference=lambda: tiny.saved("reference", tiny.siglip(1), tiny.siglip_processor()),
        processor=lambda: None,
    ),
    "model_init": Run(
        {"reference": "online"}, model=lambda: None, options=lambda: {"model_init": (lambda: tiny.siglip(3))}, **BESIDE
    ),
    "lora_backbone": Run(
        {"reference": "adapter"}, reference=lambda: None, options=lambda: {"peft_config": LoraConfig(**LORA)}
    ),
    "lora_other_adapter": Run(
        {"reference": "adapter", "cache_reference": True},
        model=partial(adapted, 2),
        reference=lambda: tiny.saved("adapter", adapted(1)),
        **CACHED,
    ),
    "naflex": Run(**NAFLEX),
    "naflex_at_view": Run({"scoring_view": "num_patches:6", "eval_at_view": True}, **NAFLEX),
    "dropped_patches": Run({"scoring_view": "drop:0.5"}),
    "language_model": labelled(tiny.llama, settings={"selection": "independent"}),
    "language_model_cached": labelled(tiny.llama, settings={"selection": "top_k", "cache_reference": True}, **CACHED),
    "image_classes": labelled(
        tiny.vit,
        settings={"selection": "independent", "reference": "online", "label_smoothing_factor": 0.1},
        options=lambda: {"compute_metrics": accuracy},
        predicts=True,
        **BESIDE,
    ),
    "text_classes": labelled(
        tiny.bert, settings={"selection": "top_k", "scoring": "proxy", "objective": "classification"}, **BESIDE
    ),
    # ---- Evaluation, and a cache that was made beforehand ----
    "eval_at_view": Run({"scoring_view": "patch:16", "eval_at_view": True}, rows=tiny.photographs),
    "best_checkpoint": Run(
        {"eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "eval_two_R@5"},
        evaluated=lambda: {"one": tiny.pairs(8, seed=1), "two": tiny.broken_pairs(9, seed=2)},
    ),
    "zero_shot": Run({"selection": "uniform"}, reference=lambda: None, zero_shot=True),
    "reference_cache": Cached(rows=tiny.captioned),
    "reference_cache_checked": Cached(
        rows=tiny.broken_pairs,
        reference=lambda: tiny.saved("reference", tiny.siglip(1), tiny.siglip_processor()),
        flags=("--dtype", "float32", "--batch_size", "7"),
    ),
}
