# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The fields of `TrainingArguments`: those that work here, those that are refused, and those without a use.

An argument that is accepted has its effect. Each field of `TrainingArguments` is in one of the three tables; a test
finds a field that a new version of transformers adds.
"""

from __future__ import annotations

from typing import Any


# Refused unless the value is one of these, with what the argument would do, or why it would do nothing, and a way out.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "gradient_accumulation_steps": (
        (1,),
        "would split the examples of a step into parts, and select from each part and compute its loss without the "
        "others; set it to 1, and to save memory use gradient_checkpointing=True, or for image-text pairs "
        "gradient_cache_chunk_size",
    ),
    "remove_unused_columns": (
        (False,),
        "would drop the image and caption columns before the collator reads them; leave it at False",
    ),
    "auto_find_batch_size": (
        (False,),
        "would change the sub-batch, and with it the loss and the selection, in the middle of a run; choose "
        "per_device_train_batch_size, and scoring_batch_size if scoring is too large",
    ),
    "train_sampling_strategy": (
        ("random",),
        "has no effect: the order of rows is random, a function of data_seed and the epoch; leave it out",
    ),
    "ignore_data_skip": (
        (False,),
        "would read an epoch from its beginning after a resume, and the run would select other examples; leave it out",
    ),
    "dataloader_in_order": (
        (True,),
        "would hand super-batches to other steps than those whose noise they were drawn with; leave it out",
    ),
    "bf16_full_eval": ((False,), "has no effect: evaluation has the precision of training; set bf16=True"),
    "fp16_full_eval": ((False,), "has no effect: evaluation has the precision of training; set fp16=True"),
    "prediction_loss_only": ((False, None), "has no effect: an evaluation returns all of its metrics; leave it out"),
    "batch_eval_metrics": (
        (False,),
        "is not supported: compute_metrics is called once, with a whole data set; leave it out",
    ),
    "eval_do_concat_batches": ((True,), "has no effect: predictions are those of a whole data set; leave it out"),
    "eval_use_gather_object": ((False,), "has no effect: an evaluation gathers tensors; leave it out"),
    "include_for_metrics": (
        ([], None),
        "has no effect: compute_metrics gets the predictions and labels of a whole data set; leave it out",
    ),
    "label_names": (
        (None, []),
        "has no effect: labels come from the collator; leave it out, and pass a collator with the label_column",
    ),
    "include_num_input_tokens_seen": (
        ("no", False),
        "would count the tokens of rows that are not trained on; leave it out, and read examples_trained in the logs",
    ),
    "neftune_noise_alpha": (
        (None,),
        "would add noise to the embeddings of what is trained on, but not of what is scored, so that the scores are "
        "those of another model; leave it out",
    ),
    "use_liger_kernel": (
        (False,),
        "can replace the logits of a model by its loss, and selection needs the loss of each example; leave it out",
    ),
    "liger_kernel_config": ((None,), "belongs to use_liger_kernel, which is refused; leave it out"),
    "parallelism_config": (
        (None,),
        "would spread one example over several devices, which the contrastive loss would take for several examples; "
        "leave it out, and use a preset of `jest-hf preset`, such as ddp or zero2",
    ),
}

# Without a use here, and without harm.
IRRELEVANT: dict[str, str] = {
    "average_tokens_across_devices": "the loss is a mean over the examples of all devices",
    "eval_accumulation_steps": "results go to the CPU after each batch",
    "length_column_name": "belongs to train_sampling_strategy",
    "use_cache": "nothing is generated",
    "do_train": "for scripts",
    "do_eval": "for scripts",
    "do_predict": "for scripts",
    "resume_from_checkpoint": "for scripts, which pass it to train()",
    "local_rank": "set by the launcher",
}

WORKS: frozenset[str] = frozenset(
    """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules max_grad_norm label_smoothing_factor bf16 fp16 tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_compile
    torch_compile_backend torch_compile_mode torch_empty_cache_steps logging_strategy logging_steps logging_first_step
    log_on_each_node logging_nan_inf_filter log_level log_level_replica disable_tqdm report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
    per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps save_on_each_node
    save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
    hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
    dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics
    """.split()
)


def check_inherited(args: Any) -> None:
    """Refuse arguments of `TrainingArguments` that would have another effect than their name says, or none.

    Raises:
        ValueError: for the first of them, with a way out.
    """
    for name, (neutral, why) in REFUSED.items():
        value = getattr(args, name, neutral[0])
        if value not in neutral:
            raise ValueError(f"{name}={value!r} {why}.")


__all__ = ["IRRELEVANT", "REFUSED", "WORKS", "check_inherited"]
