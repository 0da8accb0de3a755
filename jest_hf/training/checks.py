# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Checks before the first step: of the launch, of sizes, and of options that do not suit the models or the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch import nn
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.generic import strtobool

from jest_hf.config import JESTConfig
from jest_hf.data.labelled import LabelledCollator
from jest_hf.data.rows import Rows
from jest_hf.data.streamed_rows import StreamedRows, is_stream
from jest_hf.distributed import Ranks
from jest_hf.images.views import View
from jest_hf.models import base_model, check_view
from jest_hf.objectives import OBJECTIVES, Objective
from jest_hf.selection import CRITERIA, SELECTIONS, Selector


logger = logging.get_logger(__name__)


def check_arguments(args: Any, data_collator: Any, ref_model: Any) -> None:
    """Check the types of the arguments of [`~jest_hf.JESTTrainer`], and that there is a reference if one is needed."""
    if not isinstance(args, JESTConfig):
        raise ValueError(
            f"args must be a JESTConfig, got {type(args).__name__}; it takes every field of TrainingArguments."
        )
    if data_collator is not None and not isinstance(
        data_collator, tuple(one.collator_type for one in OBJECTIVES.values())
    ):
        raise ValueError(
            f"data_collator must be a JESTDataCollator, or a collator of jest_hf.data.labelled, got "
            f"{type(data_collator).__name__}: a super-batch needs uint8 images, example ids and a mark of broken "
            "rows; subclass one of these, or leave data_collator out."
        )
    cached = args.reference_cache is not None
    if args.uses_reference and ref_model is None and args.reference == "model" and not cached:
        if args.selects and CRITERIA[args.settings.criterion].reference:
            wants = f"criterion={args.criterion!r}"
            way_out = "choose criterion='hard_learner' or selection='uniform'"
        elif args.settings.prefilter_ratio > 0:
            wants, way_out = f"prefilter_ratio={args.prefilter_ratio}", "set it to 0"
        elif args.settings.distillation_weight > 0:
            wants, way_out = f"distillation_weight={args.distillation_weight}", "set it to 0"
        else:
            wants, way_out = (
                f"compare_selectors={args.compare_selectors}",
                "compare with selectors that need none, such as 'uniform'",
            )
        raise ValueError(f"{wants} needs a reference: pass ref_model (a model, a Hub id or a path), or {way_out}.")


# Methods of the Trainer that are never called here, and what to do in place of overriding them.
NOT_CALLED = {
    "_get_train_sampler": "the order of rows is a function of data_seed and the epoch; override get_train_dataloader",
    "_get_eval_sampler": "an evaluation reads the rows in their order; override get_eval_dataloader",
    "_remove_unused_columns": "the collator reads the columns that it needs; override the collator",
    "prediction_step": "an evaluation is the objective's; override evaluation_loop, or register an objective",
}


def check_overrides(kind: type, base: type) -> None:
    """Refuse a subclass of the trainer `base` that overrides a method that is never called.

    Raises:
        ValueError: for such a method, with a way out.
    """
    for name, way_out in NOT_CALLED.items():
        if getattr(kind, name, None) is not getattr(base, name, None):
            raise ValueError(f"{kind.__name__} overrides {name}, which {base.__name__} never calls: {way_out}.")


def check_distinct(**models: nn.Module | str | None) -> None:
    """Check that the models, by the name of their argument, are different objects, also underneath an adapter: the
    learner is trained and the reference is frozen."""
    modules = {name: base_model(model) for name, model in models.items() if isinstance(model, nn.Module)}
    for (name, one), (other_name, other) in combinations(modules.items(), 2):
        if one is other:
            raise ValueError(
                f"{other_name} and {name} are the same model, and training or freezing one would change the other; "
                f"pass a copy (copy.deepcopy) as {other_name}."
            )


def warn_of_low_precision(model: nn.Module) -> None:
    """Warn of a learner whose trained weights have 16 bits: small steps round away in them."""
    low = {value.dtype for value in model.parameters() if value.requires_grad} & {torch.bfloat16, torch.float16}
    if low:
        logger.warning(
            f"The learner's own weights are {', '.join(str(one).removeprefix('torch.') for one in low)}, and most "
            "steps of a small learning rate round away in them; load the learner with dtype=torch.float32 and set "
            "bf16=True, which computes in bfloat16 and keeps the weights in float32."
        )


def warn_of_precision(args: JESTConfig) -> None:
    """Log that TF32 has no effect on a device other than CUDA's."""
    if args.selection_precision == "tf32" and args.device.type != "cuda":
        logger.warning(
            f"selection_precision='tf32' has no effect on {args.device.type}: the products are float32; leave it out, "
            "or train on a CUDA device."
        )


def check_learner(learner: nn.Module, view: View | None, *, deepspeed: bool) -> None:
    """
    Check precision and view of the learner: line 9 of `training.setup`.

    Raises:
        ValueError: for a view that does not suit the learner.
    """
    if not deepspeed:  # its engine keeps float32 weights itself
        warn_of_low_precision(learner)
    if view is not None:
        check_view(view, base_model(learner).config)


def check_options(args: JESTConfig, objective: type[Objective]) -> None:
    """Refuse options that have no use with an objective."""
    if SELECTIONS[args.settings.selection].needs_pairs and not objective.pairs:
        raise ValueError(
            f"selection={args.selection!r} needs examples that make pairs, and those of objective={objective.name!r} "
            "stand alone; set selection='independent' or 'top_k'."
        )
    for option, neutral in objective.refused.items():
        if getattr(args, option) != neutral:
            made_for = "examples with labels" if objective.pairs else "image-text pairs"
            raise ValueError(
                f"{option}={getattr(args, option)!r} is for {made_for}, and objective={objective.name!r} has "
                "none; leave it out."
            )


def check_objective(args: JESTConfig, objective: Objective, data_collator: Any) -> None:
    """Check that the data collator and the compared selectors suit the objective."""
    if data_collator is not None and not isinstance(data_collator, objective.collator_type):
        raise ValueError(
            f"data_collator={type(data_collator).__name__}(...) does not make what objective={objective.name!r} "
            f"trains on; use {_collators(objective.collator_type)}, or leave it out."
        )
    joint = [name for name in args.compare_selectors or () if Selector.parse(name).needs_pairs]
    if joint and not objective.pairs:
        raise ValueError(
            f"compare_selectors={joint} needs examples that make pairs, and those of objective={objective.name!r} "
            "stand alone; compare with 'independent/...' or 'top_k/...'."
        )

    if args.cache_reference and args.uses_reference and objective.cached_as is None:
        raise ValueError(
            f"cache_reference=True is not possible with objective={objective.name!r}, whose references cannot be "
            "cached; set cache_reference=False."
        )


def _collators(wanted: type) -> str:
    return "one of jest_hf.data.labelled" if wanted is LabelledCollator else wanted.__name__


def check_launch(args: JESTConfig) -> None:
    """Refuse ways of starting processes that would silently train something else."""
    started = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = args.use_cpu or strtobool(os.environ.get("ACCELERATE_USE_CPU", "false"))
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, which transformers would drive with DataParallel: every "
            "replica would see a part of the contrastive batch only; start one process per GPU (accelerate launch "
            "$(jest-hf preset ddp)), or set CUDA_VISIBLE_DEVICES to one of them."
        )
    if args.deepspeed_plugin is not None and on_cpu:
        raise ValueError(
            "use_cpu=True makes accelerate ignore the DeepSpeed config silently; set use_cpu=False, and on a "
            "machine without GPUs ddp_backend='gloo' and DS_ACCELERATOR=cpu in the environment."
        )
    fsdp = args.fsdp_plugin_args is not None or strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false"))
    if fsdp and args.device.type == "cpu":
        raise ValueError(
            "accelerate cannot shard a model with FSDP on CPUs, it would train every process by itself; use GPUs, or "
            "one of the presets ddp, zero1, zero2 and zero3."
        )
    if started != args.world_size:
        raise ValueError(
            f"{started} processes were started, and accelerate uses {args.world_size}: each would train on all of the "
            "data by itself; start with `accelerate launch $(jest-hf preset zero2)` (or another preset) instead "
            "of torchrun and deepspeed=..., and on a machine without GPUs set use_cpu=True for DDP, or "
            "ddp_backend='gloo' for DeepSpeed."
        )
    if args.world_size == 1 and _one_process_of_several():
        raise ValueError(
            "accelerate launch started one process in place of several, as it does with distributed_type MULTI_CPU "
            "without MPI; use the preset ddp (distributed_type MULTI_GPU, and use_cpu=True "
            "in the arguments), or unset MASTER_PORT if one process is what you want."
        )
    if args.world_size > 1 and args.distributed_state.distributed_type == DistributedType.NO:
        raise ValueError(
            f"{args.world_size} processes were started with accelerate's distributed_type NO, which averages no "
            "gradients; set use_cpu=True on a machine without GPUs, or start with `accelerate launch $(jest-hf preset "
            "ddp)`."
        )
    if args.world_size > 1:
        _check_sharding(args)


def _one_process_of_several() -> bool:
    """Whether accelerate's launcher for one process (the first variable) got settings for several (the second)."""
    return "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ


def _check_sharding(args: JESTConfig) -> None:
    """Refuse settings with which ranks would not read equally long shares of each super-batch."""
    if not args.dataloader_drop_last:
        raise ValueError(
            "dataloader_drop_last=False would fill an incomplete last super-batch with examples that were trained on "
            "already; leave it at True with several processes."
        )
    for name, meaning in (
        ("dispatch_batches", "would have rank 0 read the data of all"),
        ("split_batches", "would cut the super-batch of one process into those of all"),
    ):
        if getattr(args.accelerator_config, name):
            raise ValueError(
                f"accelerator_config={{'{name}': True}} {meaning}, while every rank reads its own share of the "
                f"super-batch here; leave {name} out."
            )


def check_gradient_cache(args: JESTConfig) -> None:
    """Refuse gradient caching under DeepSpeed, whose engine takes an optimizer step with every backward."""
    if args.gradient_cache_chunk_size is not None and args.deepspeed_plugin is not None:
        raise ValueError(
            f"gradient_cache_chunk_size={args.gradient_cache_chunk_size} does not work with DeepSpeed, whose engine "
            "steps after every backward; use the presets ddp or fsdp2, or gradient_checkpointing=True."
        )


def check_train_size(n_rows: int | None, args: JESTConfig) -> None:
    """Check that an epoch holds a super-batch; a stream (`n_rows=None`) has neither epochs nor an index."""
    if n_rows is None and args.cache_reference and args.reference_cache is None:
        raise ValueError(
            "cache_reference=True embeds the training data by index, and a stream has no index; set reference_cache "
            "to a cache of the same data, made by `jest-hf cache-reference`, or pass a map-style data set."
        )
    if n_rows is None and "epoch" in (args.eval_strategy, args.save_strategy):
        raise ValueError(
            f"eval_strategy={IntervalStrategy(args.eval_strategy).value!r}, "
            f"save_strategy={SaveStrategy(args.save_strategy).value!r}: a stream has no epochs; set them to 'steps' "
            "or 'no'."
        )
    if n_rows is not None and n_rows < args.candidates_size:
        raise ValueError(
            f"train_dataset has {n_rows} rows, fewer than one super-batch of {args.candidates_size} "
            f"(per_device_train_batch_size={args.per_device_train_batch_size} on {args.world_size} devices, "
            f"filter_ratio={args.filter_ratio}); lower one of these, or pass more rows."
        )


def number_of_rows(dataset: Any, image_column: str, ranks: Ranks) -> int | None:
    """
    Return the number of training rows, after a check of their form; `None` for a stream and for no data.

    Raises:
        TypeError, ValueError: as [`Rows`] and [`StreamedRows`].
    """
    if dataset is None:
        return None
    if is_stream(dataset):
        StreamedRows(dataset, image_column, ranks)
        return None
    return len(Rows(dataset, image_column))


def check_functions(objective: Objective, functions: Mapping[str, Any]) -> None:
    """
    Refuse functions of the user, among the further arguments of a Trainer, that would not be called.

    Raises:
        ValueError: for such a function.
    """
    for name, way_out in (
        ("compute_loss_func", "set label_smoothing_factor, or register an objective"),
        ("preprocess_logits_for_metrics", "do it in compute_metrics"),
    ):
        if functions.get(name) is not None:
            raise ValueError(
                f"{name} would not be called: selection needs the loss of each example, and evaluation keeps the "
                f"logits of whole examples; {way_out}."
            )
    objective.check_metrics(functions.get("compute_metrics"))
