# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every knob of a jest_hf run: `JESTConfig` is `transformers.TrainingArguments` plus what selection needs.

All values are checked when the object is made, so that a wrong one costs a second and not the first hour of a job.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments


SELECTIONS = ("joint", "independent", "uniform")
CRITERIA = ("learnability", "easy_reference", "hard_learner")
LOSS_KINDS = ("sigmoid", "softmax")
SCOPES = ("global", "local")
LOSS_EXCHANGES = ("gather", "ring")
REFERENCES = ("model", "adapter")
PLACEMENTS = ("replica", "sharded")


@dataclass
class JESTConfig(TrainingArguments):
    r"""
    Arguments of a [`JESTTrainer`]: those of [`~transformers.TrainingArguments`], and the ones below.

    `per_device_train_batch_size` is the SUB-batch on one device: what a step trains on. The super-batch that is loaded
    and scored for it has `per_device_train_batch_size / (1 - filter_ratio)` examples, rounded.

    Some inherited defaults differ, each because the ordinary one is wrong here: `remove_unused_columns=False` (the
    collator needs image and caption), `label_names=[]`, `dataloader_drop_last=True` (an incomplete last super-batch is
    dropped), `adam_beta2=0.95` (0.999 is unstable for sigmoid losses, arXiv 2303.15343), `data_seed=seed`.

    > Parameters that control the selection

    selection (`str`, *optional*, defaults to `"joint"`):
        `"joint"` is Algorithm 1 of JEST (arXiv 2406.17711), `"independent"` draws by each example's own score,
        `"uniform"` is IID training: the whole batch is trained on and nothing is scored.
    criterion (`str`, *optional*, defaults to `"learnability"`):
        Score of an example: `"learnability"` (learner loss - reference loss), `"easy_reference"` (- reference loss) or
        `"hard_learner"` (learner loss).
    filter_ratio (`float`, *optional*, defaults to `0.8`):
        Share of the super-batch that is NOT trained on, in [0, 1).
    n_chunks (`int`, *optional*, defaults to `16`):
        Chunks in which the joint selection draws the sub-batch.
    selection_gain (`float`, *optional*, defaults to `1.0`):
        Factor on the scores before sampling: larger is greedier.
    selection_scope (`str`, *optional*, defaults to `"global"`):
        `"global"` selects from the super-batch of all devices together: the same sub-batch whatever their number.
        `"local"` selects on each device for itself, a weaker method. The same thing on one device.

    > Parameters that control scoring and loss

    loss (`str`, *optional*):
        `"sigmoid"` or `"softmax"`. Default: sigmoid for SigLIP and SigLIP 2 learners, softmax for CLIP.
    loss_tile_size (`int`, *optional*):
        Rows of the logit matrix that the loss holds at a time. Default: dense for small sub-batches, tiled for large.
    loss_exchange (`str`, *optional*, defaults to `"gather"`):
        How the devices see each other's embeddings in the loss: `"gather"` brings all of them to each device, `"ring"`
        passes one device's at a time round, which bounds the memory. The same loss either way.
    gradient_cache_chunk_size (`int`, *optional*):
        Train on the sub-batch in chunks of so many examples (on each device), for sub-batches whose activations do not
        fit: the gradients are the same (arXiv 2101.06983), for one more forward. Default: all at once.
    scoring_batch_size (`int`, *optional*):
        Examples scored in one forward. Default: `per_device_train_batch_size`.
    reference (`str`, *optional*, defaults to `"model"`):
        `"model"` is a model of its own; `"adapter"` is the learner's backbone, with the LoRA adapter that `ref_model`
        names or with none, so that the reference costs no weights. `"adapter"` needs a learner with `peft_config`.
    ref_placement (`str`, *optional*, defaults to `"replica"`):
        `"replica"` keeps the whole reference on each device, `"sharded"` spreads it (DeepSpeed ZeRO-3 and FSDP2 only).
    ref_model_revision (`str`, *optional*):
        Branch, tag or commit of a `ref_model` named by its Hub id.
    cache_reference (`bool`, *optional*, defaults to `False`):
        Embed the training data once with the reference, before the first step, into `output_dir/reference_cache` (8 D
        bytes a row, fp32). The selections stay the same, and the reference costs nothing from then on.
    reference_cache (`str`, *optional*):
        Folder or Hub data-set id of a cache that `jest-hf cache-reference` has made of the training data. The
        reference is not loaded; `ref_model` may be left out, and is compared with the cache where it is given.
    reference_cache_revision (`str`, *optional*):
        Branch, tag or commit of a `reference_cache` on the Hub.

    > Parameters that control the resolution (Flexi-JEST)

    scoring_view (`str`, *optional*):
        A cheaper view of the images at which the learner scores the super-batch: `"patch:32"` (larger patches, by
        PI-resize), `"image:112"` (smaller images), `"num_patches:64"` (SigLIP 2 NaFlex) or `"drop:0.5"` (patches left
        out, for comparison). Default: full resolution.
    low_resolution_fraction (`float`, *optional*, defaults to `0.5`):
        With `scoring_view`, the part of the sub-batch (on each device, drawn at random) that is trained on at that
        view; the rest at full resolution, in one loss. A learner that never trains at a view scores badly at it.
    eval_at_view (`bool`, *optional*, defaults to `False`):
        Evaluate at the scoring view too, besides at full resolution.

    > Parameters that control the records and the evaluation

    record_selection (`bool`, *optional*, defaults to `False`):
        Write every selected example to `output_dir/selections.parquet` (step, rank, order, example_id).
    eval_group_column (`str`, *optional*):
        Column of the evaluation data whose equal values mean "the same thing": any caption of an image's group is a
        hit. Default: an image's own captions are its only hits.
    """

    selection: str = field(
        default="joint", metadata={"help": "Which sub-batch to train on: joint, independent or uniform (IID)."}
    )
    criterion: str = field(
        default="learnability", metadata={"help": "Score: learnability, easy_reference or hard_learner."}
    )
    filter_ratio: float = field(
        default=0.8, metadata={"help": "Share of the super-batch that is not trained on, in [0, 1)."}
    )
    n_chunks: int = field(default=16, metadata={"help": "Chunks in which joint selection draws the sub-batch."})
    selection_gain: float = field(default=1.0, metadata={"help": "Factor on the scores before sampling."})
    selection_scope: str = field(
        default="global", metadata={"help": "Select over all devices (global) or on each for itself (local)."}
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
        default="model", metadata={"help": "What the reference is: a model, or an adapter on the learner's backbone."}
    )
    ref_placement: str = field(
        default="replica", metadata={"help": "The whole reference on each device (replica), or sharded."}
    )
    ref_model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a reference model named by its Hub id."}
    )
    cache_reference: bool = field(
        default=False, metadata={"help": "Embed the training data once with the reference, before the first step."}
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
    low_resolution_fraction: float = field(
        default=0.5, metadata={"help": "Part of the sub-batch that is trained on at the scoring view, in [0, 1]."}
    )
    eval_at_view: bool = field(default=False, metadata={"help": "Evaluate at the scoring view too."})
    record_selection: bool = field(
        default=False, metadata={"help": "Write the selected example ids to output_dir/selections.parquet."}
    )
    eval_group_column: str | None = field(
        default=None, metadata={"help": "Evaluation column whose equal values count as hits of each other."}
    )

    # Inherited fields with another default; the class docstring says why.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: the collator needs them."})
    label_names: list[str] | None = field(
        default_factory=list, metadata={"help": "Contrastive batches have no labels."}
    )
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the incomplete last super-batch."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of Adam; 0.999 is unstable for sigmoid losses."})

    def __post_init__(self) -> None:
        _check_choice("selection", self.selection, SELECTIONS)
        _check_choice("criterion", self.criterion, CRITERIA)
        _check_choice("selection_scope", self.selection_scope, SCOPES)
        _check_choice("loss_exchange", self.loss_exchange, LOSS_EXCHANGES)
        _check_choice("reference", self.reference, REFERENCES)
        _check_choice("ref_placement", self.ref_placement, PLACEMENTS)
        if self.loss is not None:
            _check_choice("loss", self.loss, LOSS_KINDS)
        if not 0.0 <= self.filter_ratio < 1.0:
            raise ValueError(
                f"filter_ratio={self.filter_ratio} must be in [0, 1): it is the share of the super-batch that is not "
                "trained on; 0.8 trains on a fifth of it, and selection='uniform' trains without selecting."
            )
        for name in ("n_chunks", "per_device_train_batch_size"):
            _check_at_least_one(name, getattr(self, name))
        for name in ("loss_tile_size", "scoring_batch_size", "gradient_cache_chunk_size"):
            if getattr(self, name) is not None:
                _check_at_least_one(name, getattr(self, name))
        if not (math.isfinite(self.selection_gain) and self.selection_gain > 0):
            raise ValueError(
                f"selection_gain={self.selection_gain} must be a finite number above 0: it multiplies the scores; "
                "use criterion or selection='uniform' to change what is selected."
            )
        if not 0.0 <= self.low_resolution_fraction <= 1.0:
            raise ValueError(
                f"low_resolution_fraction={self.low_resolution_fraction} must be in [0, 1]: it is the part of the "
                "sub-batch that is trained on at the scoring view."
            )
        if self.eval_at_view and self.scoring_view is None:
            raise ValueError("eval_at_view=True needs a scoring_view to evaluate at, such as 'patch:32'; name one.")
        if self.gradient_accumulation_steps > 1:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} would take each contrastive loss "
                "over a part of the sub-batch and lose the negatives of the rest; set it to 1 and raise "
                "per_device_train_batch_size, with gradient_cache_chunk_size if memory is short."
            )
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns=True would drop the image and caption columns before the collator sees them; "
                "leave it at False."
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size=True would change the sub-batch, and with it the loss and the selection, in the "
                "middle of a run; choose per_device_train_batch_size, and scoring_batch_size if scoring is too large."
            )
        if self.data_seed is None:
            self.data_seed = self.seed
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer saves, and pushes, a pickle of the arguments with each checkpoint.
        return {**self.__dict__, "hub_token": None}

    @property
    def scored_models(self) -> tuple[str, ...]:
        """Which of `"learner"` and `"reference"` score the super-batch: those that the criterion compares."""
        if self.selection == "uniform":
            return ()
        return {
            "learnability": ("learner", "reference"),
            "easy_reference": ("reference",),
            "hard_learner": ("learner",),
        }[self.criterion]

    @property
    def selection_settings(self) -> dict[str, Any]:
        """What decides which examples are selected; a resumed run is compared with its checkpoint in these."""
        names = ("selection", "criterion", "n_chunks", "selection_gain", "selection_scope", "scoring_view")
        names += ("low_resolution_fraction", "seed", "data_seed", "sub_batch_size", "super_batch_size")
        return {name: getattr(self, name) for name in names}

    @property
    def per_device_super_batch_size(self) -> int:
        """Examples loaded and scored per step and device; for `selection="uniform"` the sub-batch itself."""
        if self.selection == "uniform":
            return self.per_device_train_batch_size
        return round(self.per_device_train_batch_size / (1.0 - self.filter_ratio))

    @property
    def sub_batch_size(self) -> int:
        """Examples trained on per step, over all devices (b)."""
        return self.per_device_train_batch_size * self.world_size

    @property
    def super_batch_size(self) -> int:
        """Examples loaded and scored per step, over all devices (B)."""
        return self.per_device_super_batch_size * self.world_size


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}.")


def _check_at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
