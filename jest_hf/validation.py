# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What can be known to be wrong before the first step: the launch, the sizes, and what does not fit the models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from jest_hf.collator import JESTDataCollator
from jest_hf.config import JESTConfig
from jest_hf.models import has_logit_bias


def check_arguments(args: Any, data_collator: Any, ref_model: Any) -> None:
    """The kinds of what a [`~jest_hf.JESTTrainer`] is given, and a reference where the criterion needs one."""
    if not isinstance(args, JESTConfig):
        raise ValueError(
            f"args must be a JESTConfig, got {type(args).__name__}; it takes every field of TrainingArguments."
        )
    if data_collator is not None and not isinstance(data_collator, JESTDataCollator):
        raise ValueError(
            f"data_collator must be a JESTDataCollator, got {type(data_collator).__name__}: the super-batch needs "
            "uint8 images, example ids and a mark of the rows that are broken; subclass it, or leave it out."
        )
    if "reference" in args.scored_models and ref_model is None:
        raise ValueError(
            f"criterion={args.criterion!r} needs a reference: pass ref_model (a model, a Hub id or a path), or choose "
            "criterion='hard_learner' or selection='uniform'."
        )


def check_launch(args: JESTConfig) -> None:
    """Refuse ways of starting that would silently train something else."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, which transformers would drive with DataParallel: every "
            "replica would see a part of the contrastive batch only; set CUDA_VISIBLE_DEVICES to one of them."
        )
    world_size = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 or args.world_size > 1:
        raise ValueError(
            f"{max(world_size, args.world_size)} processes were started, and this version of jest_hf trains in one: "
            "start it with num_processes=1."
        )


def check_loss(loss: str, role: str, model: nn.Module) -> None:
    """The sigmoid loss needs a bias: without it each of the many negatives starts at a loss of log 2."""
    if loss == "sigmoid" and not has_logit_bias(model):
        raise ValueError(
            f"loss='sigmoid' needs a logit_bias, and the {role} ({type(model).__name__}) has none; use "
            f"loss='softmax', or a SigLIP {role}."
        )


def check_train_size(n_rows: int, args: JESTConfig) -> None:
    """An epoch must hold at least one super-batch."""
    needed = args.per_device_super_batch_size
    if n_rows < needed:
        raise ValueError(
            f"train_dataset has {n_rows} rows, fewer than one super-batch of {needed} "
            f"(per_device_train_batch_size={args.per_device_train_batch_size}, filter_ratio={args.filter_ratio}); "
            "lower one of the two, or bring more data."
        )


def check_inputs(inputs: Mapping[str, Tensor], config: Any, role: str) -> None:
    """Compare one collated batch, as `role` ("learner" or "reference") reads it, with the model's configuration."""
    vision, text = config.vision_config, config.text_config
    way_out = f"give the {role} the processor that belongs to it"
    pixels = inputs["pixel_values"]
    if (pixels.dim() == 3) != (config.model_type == "siglip2"):
        raise ValueError(
            f"the processor makes {'patches' if pixels.dim() == 3 else 'images'}, which a {config.model_type} {role} "
            f"cannot read; {way_out}."
        )
    if pixels.dim() == 4 and pixels.shape[-1] != vision.image_size:
        raise ValueError(
            f"the processor makes images of {pixels.shape[-1]} px, and the {role} takes {vision.image_size} px; "
            f"{way_out}."
        )
    length = inputs["input_ids"].shape[-1]
    if length > text.max_position_embeddings:
        raise ValueError(
            f"captions are padded to {length} tokens, and the {role} has {text.max_position_embeddings} text "
            f"positions; set max_length={text.max_position_embeddings} in JESTDataCollator, or {way_out}."
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any, role: str) -> None:
    """A token beyond the model's vocabulary would be an index error in the middle of the run, or worse on a GPU."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer goes up to token {largest}, and the {role} knows {config.text_config.vocab_size} tokens; "
            f"give the {role} the processor that belongs to it."
        )
