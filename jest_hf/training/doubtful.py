# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Warnings of settings that are allowed, and that can hardly be meant: one line each, when the trainer is made."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import datasets
import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from jest_hf.config import JESTConfig
from jest_hf.models import base_model, has_adapter
from jest_hf.models.adapters import REFERENCE_ADAPTER
from jest_hf.objectives import Objective
from jest_hf.selection import SELECTIONS


logger = logging.get_logger(__name__)

SMALL = 8  # pairs in a sub-batch: the default of transformers
_RATE = next(one.default for one in fields(TrainingArguments) if one.name == "learning_rate")


def warn_of_settings(
    args: JESTConfig,
    objective: Objective,
    learner: nn.Module,
    ref_model: PreTrainedModel | None,
    dataset: Any = None,
) -> None:
    """
    Warn of settings that can hardly be meant, on the first process.

    Args:
        args ([`JESTConfig`]): Options of the run.
        objective ([`Objective`]): What the run trains for.
        learner ([`~transformers.PreTrainedModel`]): The learner, with its adapter.
        ref_model ([`~transformers.PreTrainedModel`], *optional*): The reference, where it is a model of its own.
        dataset (*optional*): The training data.
    """
    if args.process_index > 0:
        return
    doubts = [_of_equal_models(args, learner, ref_model), _of_size(args), _of_rate(args, objective, learner)]
    for doubt in [*doubts, *_of_shards(args, dataset)]:
        if doubt is not None:
            logger.warning(doubt)


def _of_shards(args: JESTConfig, dataset: Any) -> list[str]:
    if not isinstance(dataset, datasets.IterableDataset):
        return []
    doubts, n_shards, n_ranks = [], dataset.num_shards, args.world_size
    if n_shards % n_ranks:
        doubts.append(
            f"train_dataset is a stream of {n_shards} shard(s), which {n_ranks} processes cannot share evenly, so "
            f"each process reads all rows and keeps one in {n_ranks}; pass a stream whose number of shards (files) is "
            f"a multiple of {n_ranks}."
        )
    else:
        n_shards //= n_ranks
    if (idle := args.dataloader_num_workers - n_shards) > 0:
        doubts.append(
            f"dataloader_num_workers={args.dataloader_num_workers}: a process reads {n_shards} shard(s) of the "
            f"stream, so {idle} of its loader workers have nothing to read; set dataloader_num_workers={n_shards}, or "
            "pass a stream of more shards (files)."
        )
    return doubts


def _of_equal_models(args: JESTConfig, learner: nn.Module, ref_model: PreTrainedModel | None) -> str | None:
    settings = args.settings
    compares = args.selects and settings.criterion == "learnability" and settings.scoring == "learner"
    trains_first = args.selection_warmup_steps > 0 or args.resume_from_checkpoint is not None
    if not compares or trains_first or args.reference == "online":
        return None
    if args.reference == "adapter":
        equal = _is_untouched(learner)
    else:
        equal = ref_model is not None and not has_adapter(learner) and same_weights(learner, ref_model)
    if not equal:
        return None
    return (
        "The reference has the learner's weights, so learnability (learner loss - reference loss) is 0 for every "
        "example at the first step, and the first draws are random; set criterion='easy_reference', or pass a "
        "reference that was trained on better data."
    )


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    """
    Return whether two models have equal parameters of equal names. `False` for weights that are not whole here, as
    ZeRO-3 partitions them. The first difference ends the comparison.
    """
    own, others = dict(model.named_parameters()), dict(other.named_parameters())
    if own.keys() != others.keys():
        return False
    return all(
        value.numel() > 0 and value.shape == others[name].shape and torch.equal(value, others[name].to(value))
        for name, value in own.items()
    )


def _is_untouched(learner: Any) -> bool:
    """Whether the learner's adapter changes nothing yet, and the reference is the backbone without it."""
    if not has_adapter(learner) or REFERENCE_ADAPTER in learner.peft_config:
        return False
    outer = [value for name, value in learner.named_parameters() if "lora_B" in name]
    return bool(outer) and all(value.numel() > 0 and not value.any() for value in outer)


def _of_size(args: JESTConfig) -> str | None:
    if not SELECTIONS[args.settings.selection].needs_pairs or args.sub_batch_size > SMALL:
        return None
    how = f"per_device_train_batch_size={args.per_device_train_batch_size} on {args.world_size} devices"
    return (
        f"The sub-batch has {args.sub_batch_size} pairs ({how}), so each has {args.sub_batch_size - 1} negatives, and "
        "joint selection hardly anything to compare it with; raise per_device_train_batch_size to 64 or more, with "
        "gradient_checkpointing or gradient_cache_chunk_size where memory is short."
    )


def _of_rate(args: JESTConfig, objective: Objective, learner: nn.Module) -> str | None:
    if not objective.pairs or args.learning_rate != _RATE or has_adapter(learner):
        return None
    config: Any = base_model(learner).config
    usual = (
        "all weights of a pre-trained dual encoder are usually trained at 1e-6 to 1e-5"
        if config._name_or_path
        else "a dual encoder with random weights is usually trained at 5e-4 to 1e-3"
    )
    return f"learning_rate={_RATE} is the default of transformers, and {usual}; set learning_rate."


__all__ = ["same_weights", "warn_of_settings"]
