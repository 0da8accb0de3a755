# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every option of a jest_hf run that `transformers.TrainingArguments` does not have, with its default and its help.

[`JESTConfig`] documents the options at length, fills in what is not given and checks the values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from jest_hf.config.presets import PRESETS


@dataclass
class JESTOptions(TrainingArguments):
    """The fields of [`JESTConfig`], which is the class to use. `None`: not given, or off."""

    preset: str | None = field(
        default=None, metadata={"help": f"A published method, for options that are not given: {', '.join(PRESETS)}."}
    )
    selection: str | None = field(
        default=None, metadata={"help": "Which sub-batch to train on: joint (default), independent, top_k or uniform."}
    )
    criterion: str | None = field(
        default=None, metadata={"help": "Score: learnability (default), easy_reference or hard_learner."}
    )
    filter_ratio: float | None = field(
        default=None, metadata={"help": "Share of the super-batch that is not trained on, in [0, 1); default 0.8."}
    )
    n_chunks: int = field(default=16, metadata={"help": "Chunks in which joint selection draws the sub-batch."})
    selection_gain: float = field(default=1.0, metadata={"help": "Factor on the scores before sampling."})
    selection_scope: str = field(
        default="global", metadata={"help": "Select over all devices (global) or on each for itself (local)."}
    )
    uniform_fraction: float = field(
        default=0.0, metadata={"help": "Part of the sub-batch that is drawn uniformly, in [0, 1]."}
    )
    selection_warmup_steps: int = field(
        default=0, metadata={"help": "Steps at the beginning without selection and scoring."}
    )
    filter_ratio_ramp_steps: int = field(
        default=0, metadata={"help": "Steps over which the filter ratio then rises from 0."}
    )
    compare_selectors: list[str] | None = field(
        default=None, metadata={"help": "Log what others would select: uniform, or <selection>/<criterion>."}
    )
    source_column: str | None = field(
        default=None, metadata={"help": "Training column whose values' selection rates are logged."}
    )
    objective: str | None = field(
        default=None, metadata={"help": "contrastive, classification or language_model; default: by the learner."}
    )
    scoring: str | None = field(
        default=None, metadata={"help": "Who is compared with the reference: learner (default), or a small proxy."}
    )
    proxy_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the proxy; by default the learner's."}
    )
    pair_score: str | None = field(
        default=None, metadata={"help": "What stands for a pair's loss: loss (default) or similarity (ActiveCLIP)."}
    )
    distillation_weight: float | None = field(
        default=None, metadata={"help": "Weight of the distillation loss from the reference (ACED); default 0."}
    )
    loss: str | None = field(
        default=None, metadata={"help": "sigmoid or softmax; by default what the learner was made for."}
    )
    loss_tile_size: int | None = field(
        default=None, metadata={"help": "Rows of the logit matrix that the loss holds at a time."}
    )
    scoring_batch_size: int | None = field(
        default=None, metadata={"help": "Examples scored in one forward; by default the sub-batch size."}
    )
    loss_exchange: str = field(
        default="gather", metadata={"help": "How devices share embeddings in the loss: gather, or ring (less memory)."}
    )
    gradient_cache_chunk_size: int | None = field(
        default=None, metadata={"help": "Examples trained on at a time; by default the whole sub-batch of a device."}
    )
    reference: str = field(
        default="model",
        metadata={"help": "What the reference is: model, adapter (on the backbone), or online."},
    )
    online_reference_learning_rate: float | None = field(
        default=None, metadata={"help": "Of an online reference; by default twice the learner's."}
    )
    ref_placement: str = field(
        default="replica", metadata={"help": "The whole reference on each device (replica), or sharded."}
    )
    ref_model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a reference model named by its Hub id."}
    )
    cache_reference: bool | None = field(
        default=None, metadata={"help": "Embed the training data once with the reference, before the first step."}
    )
    reference_cache: str | None = field(
        default=None, metadata={"help": "Folder or Hub data-set id of a reference cache; the reference is not loaded."}
    )
    reference_cache_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a reference cache on the Hub."}
    )
    scoring_view: str | None = field(
        default=None, metadata={"help": "Cheaper view to score at: patch:32, image:112, num_patches:64 or drop:0.5."}
    )
    low_resolution_fraction: float | None = field(
        default=None, metadata={"help": "Part of the sub-batch trained on at the scoring view; default 0.5."}
    )
    eval_at_view: bool = field(default=False, metadata={"help": "Evaluate at the scoring view too."})
    record_selection: bool = field(
        default=False, metadata={"help": "Write the selected example ids to output_dir/selections.parquet."}
    )
    eval_group_column: str | None = field(
        default=None, metadata={"help": "Evaluation column whose equal values count as hits of each other."}
    )

    # Inherited fields with another default; the class docstring says why.
    label_smoothing_factor: float | None = field(
        default=None, metadata={"help": "Label smoothing of a classification; default 0, or the preset's."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: the collator needs them."})
    label_names: list[str] | None = field(
        default_factory=list, metadata={"help": "Contrastive batches have no labels."}
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the incomplete last super-batch, of which less could be filtered out."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of Adam; 0.999 is unstable for sigmoid losses."})
