# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every option that a jest_hf run adds to `transformers.TrainingArguments`, with its default and its `--help` text.

[`JESTConfig`] documents the options at length, fills in those that are not given, and checks the values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from jest_hf.config.presets import PRESETS
from jest_hf.selection import SELECTIONS


@dataclass(frozen=True)
class SelectionSettings:
    """The options that a preset can fill in, filled in: none is `None`, as it may be in [`JESTConfig`] before that.

    Args: as those of [`JESTConfig`].
    """

    selection: str
    criterion: str
    filter_ratio: float
    pair_score: str
    scoring: str
    label_smoothing_factor: float
    low_resolution_fraction: float
    distillation_weight: float
    cache_reference: bool
    prefilter_ratio: float

    def super_batch_size(self, sub_batch_size: int) -> int:
        """Return the number of examples to load in a step that trains on `sub_batch_size` (`int`) of them."""
        if not SELECTIONS[self.selection].scores:
            return sub_batch_size
        return round(sub_batch_size / (1.0 - self.filter_ratio))

    def candidates(self, super_batch_size: int) -> int:
        """Return the number of candidates of which `super_batch_size` (`int`) are loaded, by cached scores."""
        return round(super_batch_size / (1.0 - self.prefilter_ratio))


@dataclass
class JESTOptions(TrainingArguments):
    """The fields of [`JESTConfig`], which is the class to use. `None` means not given, or off."""

    preset: str | None = field(
        default=None,
        metadata={
            "help": f"Published method that sets the options you do not give: {', '.join(PRESETS)}. Default: none."
        },
    )
    selection: str | None = field(
        default=None,
        metadata={
            "help": "How to select the sub-batch: joint (JEST), independent, top_k, or uniform (no selection, IID "
            "training). Default: joint, or the preset's."
        },
    )
    criterion: str | None = field(
        default=None,
        metadata={
            "help": "Score of an example: learnability (learner loss - reference loss), easy_reference (minus the "
            "reference loss) or hard_learner (learner loss). Default: learnability, or the preset's."
        },
    )
    filter_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the super-batch that is not trained on, in [0, 1). Default: 0.8, or the preset's."
        },
    )
    prefilter_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the candidates that the cached reference drops before the super-batch is decoded, in "
            "[0, 1). Default: 0."
        },
    )
    n_chunks: int = field(
        default=16, metadata={"help": "Number of chunks in which joint selection draws the sub-batch."}
    )
    selection_gain: float = field(
        default=1.0, metadata={"help": "Factor on the scores before sampling; larger is greedier."}
    )
    selection_precision: str = field(
        default="float32",
        metadata={
            "help": "Precision of the products of embeddings in joint selection: float32, tf32 or bfloat16 (faster on "
            "a GPU). Default: float32."
        },
    )
    selection_scope: str = field(
        default="global",
        metadata={"help": "Select from the super-batches of all devices together (global) or on each alone (local)."},
    )
    uniform_fraction: float = field(
        default=0.0, metadata={"help": "Part of the sub-batch to draw uniformly, whatever the scores, in [0, 1]."}
    )
    selection_warmup_steps: int = field(
        default=0, metadata={"help": "Number of first steps that train on a uniform sub-batch, without scoring."}
    )
    filter_ratio_ramp_steps: int = field(
        default=0,
        metadata={"help": "Number of steps after the warm-up in which the filter ratio rises from 0 to filter_ratio."},
    )
    compare_selectors: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other selectors to compare the selection with in the logs: uniform, or <selection>/<criterion>, "
            "e.g. independent/easy_reference. Default: none."
        },
    )
    source_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the training data, e.g. source; the logs get the selection rate of each of its values. "
            "Default: none."
        },
    )
    objective: str | None = field(
        default=None,
        metadata={
            "help": "What to train for: contrastive, classification or language_model. Default: what the learner is "
            "made for."
        },
    )
    scoring: str | None = field(
        default=None,
        metadata={
            "help": "Model that is compared with the reference: learner, or proxy (a small model that is trained "
            "beside the learner). Default: learner, or the preset's."
        },
    )
    proxy_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the proxy. Default: the learner's."}
    )
    pair_score: str | None = field(
        default=None,
        metadata={
            "help": "Loss of a pair in a score: loss, or similarity (minus the dot product of the two embeddings, "
            "ActiveCLIP). Default: loss, or the preset's."
        },
    )
    distillation_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of a second loss that distils the reference into the learner (ACED). Default: 0, or the "
            "preset's."
        },
    )
    loss: str | None = field(
        default=None,
        metadata={
            "help": "Contrastive loss: sigmoid or softmax. Default: sigmoid for SigLIP learners, softmax for CLIP."
        },
    )
    loss_tile_size: int | None = field(
        default=None,
        metadata={"help": "Rows of the logit matrix held at a time. Default: all for small sub-batches, else tiles."},
    )
    scoring_batch_size: int | None = field(
        default=None, metadata={"help": "Examples scored in one forward. Default: per_device_train_batch_size."}
    )
    loss_exchange: str = field(
        default="gather",
        metadata={
            "help": "How devices exchange embeddings for the loss: gather (all to each), or ring (less memory)."
        },
    )
    gradient_cache_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Examples in a chunk of gradient caching: exact gradients, less memory, one more forward. "
            "Default: no chunks."
        },
    )
    reference: str = field(
        default="model",
        metadata={
            "help": "What the reference is: model (a model of its own), adapter (the learner's backbone, with or "
            "without an adapter) or online (trained beside the learner)."
        },
    )
    online_reference_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the online reference. Default: 2 x the learner's."}
    )
    ref_placement: str = field(
        default="replica",
        metadata={
            "help": "Where the reference's weights are: all on each device (replica), or spread over the devices "
            "(sharded; ZeRO-3 and FSDP2 only)."
        },
    )
    ref_model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a ref_model on the Hub. Default: main."}
    )
    cache_reference: bool | None = field(
        default=None,
        metadata={
            "help": "Embed the training data with the reference once, before the first step. Default: False, or the "
            "preset's."
        },
    )
    reference_cache: str | None = field(
        default=None,
        metadata={
            "help": "Reference cache made by `jest-hf cache-reference`: a folder or a Hub data-set id. The reference "
            "is then not loaded. Default: none."
        },
    )
    reference_cache_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a reference_cache on the Hub. Default: main."}
    )
    select_before_decoding: bool | None = field(
        default=None,
        metadata={
            "help": "Select in the loader, before images are decoded, where cached scores suffice. Default: yes, but "
            "without a GPU only if the draw is fast on a CPU."
        },
    )
    image_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder of decoded training images, which are read in place of image files; images that are "
            "missing are decoded before the first step. Default: none."
        },
    )
    scoring_view: str | None = field(
        default=None,
        metadata={
            "help": "Cheaper view of the images for scoring: patch:32, image:112, num_patches:64 or drop:0.5. "
            "Default: full resolution."
        },
    )
    low_resolution_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Part of the sub-batch to train on at the scoring view, in [0, 1]. Default: 0.5, or the preset's."
        },
    )
    eval_at_view: bool = field(
        default=False, metadata={"help": "Evaluate at the scoring view as well as at full resolution."}
    )
    record_selection: bool = field(
        default=False,
        metadata={"help": "Write the selected examples, with scores, to output_dir/selections.parquet."},
    )
    eval_group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the evaluation data: the captions of all rows with the value of an image count as its "
            "captions. Default: none."
        },
    )

    # Inherited fields with another default; the docstring of JESTConfig says why.
    label_smoothing_factor: float | None = field(  # type: ignore[assignment]  # None: not given, until filled in
        default=None, metadata={"help": "Label smoothing of a classification loss. Default: 0, or the preset's."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the collator needs the image and caption columns."}
    )
    label_names: list[str] | None = field(
        default_factory=list, metadata={"help": "Must stay empty: the collator finds the labels."}
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the last super-batch of an epoch where it is not full."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of Adam; 0.999 is unstable with sigmoid losses."})


__all__ = ["JESTOptions", "SelectionSettings"]
