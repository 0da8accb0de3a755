# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`JESTConfig`: `transformers.TrainingArguments` plus the options of jest_hf.

All values are checked when the object is made, so that a wrong one costs a second and not the first hour of a job.
"""

from __future__ import annotations

import os
from copy import copy, deepcopy
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import PurePath
from typing import Any, cast

from jest_hf.config.checks import check_choice, check_selection, check_training
from jest_hf.config.options import JESTOptions, SelectionSettings
from jest_hf.config.presets import DEFAULTS, PRESETS
from jest_hf.selection import SELECTIONS, SelectionSchedule, Selector


# The options that decide which examples are selected.
_DECISIVE = (
    "selection",
    "criterion",
    "n_chunks",
    "selection_gain",
    "selection_precision",
    "selection_scope",
    "scoring_view",
    "low_resolution_fraction",
    "seed",
    "data_seed",
    "sub_batch_size",
    "super_batch_size",
    "pair_score",
    "scoring",
    "reference",
    "uniform_fraction",
    "selection_warmup_steps",
    "filter_ratio_ramp_steps",
    "prefilter_ratio",
)


@dataclass
class JESTConfig(JESTOptions):
    r"""Arguments of a [`JESTTrainer`]: those of [`~transformers.TrainingArguments`], and the ones below.

    `per_device_train_batch_size` is the SUB-batch on one device: the examples that a step trains on. The super-batch
    that is loaded and scored to select them has `per_device_train_batch_size / (1 - filter_ratio)` examples, rounded.

    Some inherited options have other defaults, because the usual ones are wrong here: `remove_unused_columns=False`
    (the collator needs image and caption), `label_names=[]`, `dataloader_drop_last=True` (with False, less is filtered
    out of an incomplete last super-batch, and nothing where it is no larger than a sub-batch), `adam_beta2=0.95`
    (0.999 is unstable with sigmoid losses, arXiv 2303.15343), `data_seed=seed`.

    preset (`str`, *optional*):
        A published method (`"jest"`, `"flexi_jest"`, `"active_clip"`, `"active_siglip"`, `"class_act"`, `"rho_loss"`,
        `"h_acid"`, `"i_acid"` or `"aced"`), or `"two_stage"`. It sets the options below that are not given (see
        `jest_hf.config.presets`).

    > Parameters that control the selection

    selection (`str`, *optional*, defaults to `"joint"`):
        How the sub-batch is selected. `"joint"`: by Algorithm 1 of JEST (arXiv 2406.17711). `"independent"`: each
        example is drawn by its own score. `"top_k"`: the highest scores (RHO-LOSS). `"uniform"`: no selection (IID
        training): nothing is scored, and all that is loaded is trained on.
    criterion (`str`, *optional*, defaults to `"learnability"`):
        Score of an example: `"learnability"` (learner loss - reference loss), `"easy_reference"` (- reference loss) or
        `"hard_learner"` (learner loss).
    filter_ratio (`float`, *optional*, defaults to `0.8`):
        Share of the super-batch that is NOT trained on, in [0, 1).
    prefilter_ratio (`float`, *optional*, defaults to `0.0`):
        Selection in two stages: the share of the candidates that fall before anything is decoded, in [0, 1). The
        cached reference draws the super-batch from the candidates, each by its own reference loss; `selection` then
        draws the sub-batch from the super-batch. Needs `cache_reference` or, for a stream too, `reference_cache`.
        With 0.8 and `filter_ratio=0.5` there are 10 candidates for 2 rows of the super-batch and 1 of the sub-batch.
    n_chunks (`int`, *optional*, defaults to `16`):
        Number of chunks in which joint selection draws the sub-batch.
    selection_gain (`float`, *optional*, defaults to `1.0`):
        Factor on the scores before sampling: larger is greedier.
    selection_precision (`str`, *optional*, defaults to `"float32"`):
        How joint selection rounds the embeddings that it multiplies: `"float32"`, `"tf32"` (10 bits; on a CUDA device,
        elsewhere float32) or `"bfloat16"` (7 bits). All products are summed in float32. On a GPU the last two are
        faster, and change which examples are drawn where scores nearly tie.
    selection_scope (`str`, *optional*, defaults to `"global"`):
        `"global"` selects from the super-batches of all devices together: the same sub-batch for any number of
        devices. `"local"` selects on each device alone, a weaker method. On one device the two are the same.
    uniform_fraction (`float`, *optional*, defaults to `0.0`):
        Part of the sub-batch that is drawn uniformly, whatever the scores, in [0, 1]. The rest is selected given that
        part.
    selection_warmup_steps (`int`, *optional*, defaults to `0`):
        Number of first steps that train on a uniform part of the super-batch, without scoring.
    filter_ratio_ramp_steps (`int`, *optional*, defaults to `0`):
        Number of steps after the warm-up in which the filter ratio rises from 0 to `filter_ratio`: the sub-batch is
        selected from a growing part of the super-batch, and the rest of it is not scored.
    compare_selectors (list of `str`, *optional*):
        Other selectors to compare the selection with, on the same super-batches, in the logs (`compare/...`):
        `"uniform"`, or `"<selection>/<criterion>"` such as `"independent/easy_reference"`. What they select is not
        trained on. A joint one needs pairs, and scores them by their loss, even with `pair_score="similarity"`.
    source_column (`str`, *optional*):
        Column of the training data, such as a source or a kind of noise. The selection rate of each value is logged
        (`selection_rate/...`); the selection does not depend on the column.

    > Parameters that control scoring and loss

    objective (`str`, *optional*):
        `"contrastive"`, `"classification"` (a label for each image or text) or `"language_model"`. Default: what the
        learner is made for. Joint selection needs `"contrastive"`.
    scoring (`str`, *optional*, defaults to `"learner"`):
        The model that is compared with the reference: the `"learner"`, or a `"proxy"`, a small model that is trained
        beside the learner on the same sub-batches (arXiv 2312.05328), which spares the forwards of a large learner.
    proxy_learning_rate (`float`, *optional*):
        Peak learning rate of the proxy. Default: that of the learner.
    pair_score (`str`, *optional*, defaults to `"loss"`):
        The loss of a pair in a score: the `"loss"` itself, or `"similarity"`, minus the dot product of the pair's two
        embeddings (ActiveCLIP), with independent and top-k selection.
    distillation_weight (`float`, *optional*, defaults to `0.0`):
        Weight of a second loss on the sub-batch, in which the target of the learner is the distribution of the
        reference over the batch (ACED, arXiv 2411.18674).
    loss (`str`, *optional*):
        `"sigmoid"` or `"softmax"`. Default: sigmoid for SigLIP and SigLIP 2 learners, softmax for CLIP.
    loss_tile_size (`int`, *optional*):
        Rows of the logit matrix that the loss holds at a time. Default: all for small sub-batches, tiles for large.
    scoring_batch_size (`int`, *optional*):
        Examples scored in one forward. Default: `per_device_train_batch_size`.
    loss_exchange (`str`, *optional*, defaults to `"gather"`):
        How the devices exchange embeddings for the loss: `"gather"` brings all embeddings to each device, `"ring"`
        passes those of one device at a time around, which bounds the memory. The loss is the same.
    gradient_cache_chunk_size (`int`, *optional*):
        Examples (on each device) in a chunk of gradient caching, for sub-batches whose activations do not fit: the
        gradients are the same (arXiv 2101.06983), for one more forward. Default: no chunks.
    reference (`str`, *optional*, defaults to `"model"`):
        What the reference is. `"model"`: a model of its own. `"adapter"`: the learner's backbone, with the LoRA
        adapter that `ref_model` names, or with none; the reference then costs no weights, and the learner needs a
        `peft_config`. `"online"`: a model that is trained beside the learner on whole super-batches, from the weights
        of `ref_model` or, without one, from fresh weights.
    online_reference_learning_rate (`float`, *optional*):
        Peak learning rate of an online reference. Default: twice that of the learner.
    ref_placement (`str`, *optional*, defaults to `"replica"`):
        `"replica"` keeps the whole reference on each device. `"sharded"` spreads it over the devices (DeepSpeed ZeRO-3
        and FSDP2 only).
    ref_model_revision (`str`, *optional*):
        Branch, tag or commit of a `ref_model` on the Hub. Default: `main`.
    cache_reference (`bool`, *optional*, defaults to `False`):
        Embed the training data once with the reference, before the first step, into `output_dir/reference_cache` (8 D
        bytes a row, fp32). The selections stay the same, and the reference costs nothing from then on.
    reference_cache (`str`, *optional*):
        Folder or Hub data-set id of a cache of the training data, made by `jest-hf cache-reference`. The reference is
        not loaded. `ref_model` may be left out; if it is given, it must be the model that the cache was made with.
    reference_cache_revision (`str`, *optional*):
        Branch, tag or commit of a `reference_cache` on the Hub. Default: `main`.

    select_before_decoding (`bool`, *optional*):
        Select in the loader, before images are read and decoded, so that only the selected rows are: possible with
        `criterion="easy_reference"` and a cached reference. Of a stream all rows are read, and only the selected ones
        are decoded. The selections are those of the step. A joint draw that is too large for a CPU (4 B b D above
        2e10 FLOPs, for instance B = 10,240, b = 2,048, D = 256) is made on the GPUs, by all ranks together. `True`
        requires it, `False` selects in the step. Default: in the loader; without a GPU, a joint draw that is too large
        for a CPU is made in the step.
    image_cache (`str`, *optional*):
        Folder of the training images, decoded and resized (150,528 bytes for 224 x 224 pixels). If the folder has no
        whole cache of these images, it is made, or finished, before the first step: by all processes and their
        `dataloader_num_workers`, or beforehand with `jest-hf cache-images`. Training then reads pixels in place of
        image files. Selections and weights stay the same. Needs map-style data without a random transform. Default:
        images are decoded in every epoch.

    > Parameters that control the resolution (Flexi-JEST)

    scoring_view (`str`, *optional*):
        A cheaper view of the images at which the learner scores the super-batch: `"patch:32"` (larger patches, by
        PI-resize), `"image:112"` (smaller images), `"num_patches:64"` (SigLIP 2 NaFlex) or `"drop:0.5"` (patches left
        out, for comparison). Default: full resolution.
    low_resolution_fraction (`float`, *optional*, defaults to `0.5`):
        With `scoring_view`, the part of the sub-batch (on each device, drawn at random) that is trained on at that
        view; the rest is trained on at full resolution, in one loss. A learner that never trains at a view scores
        badly at it.
    eval_at_view (`bool`, *optional*, defaults to `False`):
        Evaluate at the scoring view as well as at full resolution.

    > Parameters that control the records and the evaluation

    record_selection (`bool`, *optional*, defaults to `False`):
        Write every selected example to the folder `output_dir/selections.parquet` (step, rank, order, example_id,
        stage, score, source, key), and a sample of those that each step did not select. `jest-hf report` shows them.
    eval_group_column (`str`, *optional*):
        Column of the evaluation data whose equal values mean "the same thing": any caption of an image's group is a
        hit. Default: only an image's own captions are hits.

    Raises:
        ValueError: for an unknown or impossible value, and for options that contradict each other.

    Example:

    ```python
    >>> from jest_hf import JESTConfig
    >>> args = JESTConfig("out", preset="active_clip", filter_ratio=0.75, per_device_train_batch_size=32)
    >>> args.settings.selection, args.settings.scoring, args.per_device_super_batch_size
    ('independent', 'proxy', 128)

    ```
    """

    def __post_init__(self) -> None:
        self._read()
        self._fill_in()
        check_selection(self, self.settings)
        check_training(self, self.settings)
        if self.data_seed is None:
            self.data_seed = self.seed
        is_default = self.accelerator_config is None
        super().__post_init__()  # type: ignore[no-untyped-call]  # transformers annotates no __post_init__
        if is_default and self.dataloader_pin_memory and self.device.type == "cuda":
            # The copy of a super-batch need not be waited for: the device's queue keeps it before what reads it.
            cast(Any, self.accelerator_config).non_blocking = True

    def _read(self) -> None:
        """Turn numbers given as strings into floats (YAML reads `1e-4` as a string), and one selector into a list."""
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, str) and "float" in str(one.type):
                try:
                    setattr(self, one.name, float(value))
                except ValueError:
                    raise ValueError(f"{one.name}={value!r} must be a number.") from None
        if isinstance(self.compare_selectors, str):
            self.compare_selectors = [self.compare_selectors]

    def _fill_in(self) -> None:
        """Fill in the options that are not given: from the preset, and without one from the defaults."""
        if self.preset is not None:
            check_choice("preset", self.preset, tuple(PRESETS))
        chosen = {} if self.preset is None else PRESETS[self.preset]
        for name, value in {**DEFAULTS, **chosen}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer saves, and pushes, a pickle of the arguments with each checkpoint, and never reads it: without
        # the token, and without the folders of the machine.
        state: dict[str, Any] = _without_folders(self.__dict__)
        return {**state, "hub_token": None}

    def __copy__(self) -> JESTConfig:
        return self.__deepcopy__(None)

    def __deepcopy__(self, memo: dict[int, Any] | None) -> JESTConfig:
        """A copy has all that a pickle leaves out."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__ if memo is None else deepcopy(self.__dict__, memo))
        return copied

    def altered(self, **options: Any) -> JESTConfig:
        """Return a copy with other values, checked as those of a new object; the device is not set up once more.

        Raises:
            ValueError: for an unknown or impossible value, and for options that contradict each other.
        """
        other = copy(self)
        for name, value in options.items():
            old = getattr(self, name)
            setattr(other, name, type(old)(value) if isinstance(old, Enum) else value)
        other._read()
        other._fill_in()
        check_selection(other, other.settings)
        check_training(other, other.settings)
        return other

    @property
    def selects(self) -> bool:
        """Whether examples are scored and selected: with every `selection` but `"uniform"`."""
        return SELECTIONS[self.settings.selection].scores

    @property
    def settings(self) -> SelectionSettings:
        """The options that a preset can fill in, with the values that this run uses."""
        return SelectionSettings(**{one.name: getattr(self, one.name) for one in fields(SelectionSettings)})

    @property
    def schedule(self) -> SelectionSchedule:
        """How much of the super-batch is filtered out at which step."""
        return SelectionSchedule(self.settings.filter_ratio, self.selection_warmup_steps, self.filter_ratio_ramp_steps)

    def selector(self, loss: str | None = None) -> Selector:
        """Make the selector of the run.

        Args:
            loss (`str`, *optional*): `"sigmoid"` or `"softmax"`: the loss of pairs. Default: examples are not pairs.
        """
        settings = self.settings
        chosen = SELECTIONS[settings.selection]
        return chosen(
            settings.criterion if chosen.uses_criterion else None,
            loss="similarity" if settings.pair_score == "similarity" else loss,
            n_chunks=self.n_chunks,
            gain=self.selection_gain,
            uniform_fraction=self.uniform_fraction,
            precision=self.selection_precision,
        )

    @property
    def scored_models(self) -> tuple[str, ...]:
        """The models that score the super-batch, of `"learner"` (or its proxy) and `"reference"`: those that the
        criterion, or a selector in `compare_selectors`, needs."""
        if not self.selects:
            return ()
        others = [Selector.parse(name) for name in self.compare_selectors or ()]
        needed = {*self.selector().models(), *(model for other in others for model in other.models())}
        return tuple(model for model in ("learner", "reference") if model in needed)

    @property
    def uses_reference(self) -> bool:
        """Whether the run needs a reference: to score, or to distil from."""
        settings = self.settings
        return "reference" in self.scored_models or settings.distillation_weight > 0 or settings.prefilter_ratio > 0

    @property
    def selection_settings(self) -> dict[str, Any]:
        """The options that decide which examples are selected; a resumed run compares them with its checkpoint."""
        return {name: getattr(self, name) for name in _DECISIVE}

    @property
    def per_device_super_batch_size(self) -> int:
        """Examples loaded and scored in a step on one device; with `selection="uniform"` those trained on."""
        return self.settings.super_batch_size(self.per_device_train_batch_size)

    @property
    def candidates_size(self) -> int:
        """Rows that a step draws from, on all devices (P): the super-batch, unless `prefilter_ratio` is set."""
        return self.settings.candidates(self.per_device_super_batch_size) * int(self.world_size)

    def prefilter(self, loss: str | None = None) -> Selector:
        """
        Make the selector of the first stage, which draws the super-batch by the reference's cached scores alone.

        Args:
            loss (`str`, *optional*): `"sigmoid"` or `"softmax"`: the loss of pairs, where the objective has pairs.
        """
        return SELECTIONS["independent"]("easy_reference", loss=loss, gain=self.selection_gain)

    @property
    def sub_batch_size(self) -> int:
        """Examples trained on in a step, on all devices together (b)."""
        return self.per_device_train_batch_size * int(self.world_size)

    @property
    def super_batch_size(self) -> int:
        """Examples loaded and scored in a step, on all devices together (B)."""
        return self.per_device_super_batch_size * int(self.world_size)


def _without_folders(value: Any) -> Any:
    """A copy in which of every absolute path only the last part is left."""
    if isinstance(value, dict):
        return {name: _without_folders(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    if isinstance(value, str | PurePath) and os.path.isabs(value):
        return type(value)(os.path.basename(os.path.normpath(value)))
    return value


# The public module; every pickled `training_args.bin` names it too.
JESTConfig.__module__ = "jest_hf.config"


__all__ = ["JESTConfig", "SelectionSettings"]
