# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`JESTConfig`: `transformers.TrainingArguments` plus what selection needs.

All values are checked when the object is made, so that a wrong one costs a second and not the first hour of a job.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from jest_hf.config.checks import check_choice, check_selection, check_training
from jest_hf.config.options import JESTOptions
from jest_hf.config.presets import DEFAULTS, PRESETS
from jest_hf.selection import SELECTIONS, Selector


@dataclass(frozen=True)
class SelectionSettings:
    """The options that a preset can fill in. In [`JESTConfig`] each may be `None` until it is filled in; here none is.

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


@dataclass
class JESTConfig(JESTOptions):
    r"""
    Arguments of a [`JESTTrainer`]: those of [`~transformers.TrainingArguments`], and the ones below.

    `per_device_train_batch_size` is the SUB-batch on one device: what a step trains on. The super-batch that is loaded
    and scored for it has `per_device_train_batch_size / (1 - filter_ratio)` examples, rounded.

    Some inherited defaults differ, each because the ordinary one is wrong here: `remove_unused_columns=False` (the
    collator needs image and caption), `label_names=[]`, `dataloader_drop_last=True` (an incomplete last super-batch is
    dropped: with False a sub-batch is selected from it too, which filters less, and nothing where it has no more rows
    than a sub-batch), `adam_beta2=0.95` (0.999 is unstable for sigmoid losses, arXiv 2303.15343), `data_seed=seed`.

    preset (`str`, *optional*):
        A published method: `"jest"`, `"flexi_jest"`, `"active_clip"`, `"active_siglip"`, `"class_act"`, `"rho_loss"`,
        `"h_acid"`, `"i_acid"` or `"aced"`. It sets the options below that are not given (see `jest_hf.presets`).

    > Parameters that control the selection

    selection (`str`, *optional*, defaults to `"joint"`):
        `"joint"` is Algorithm 1 of JEST (arXiv 2406.17711), `"independent"` draws by each example's own score,
        `"top_k"` takes the highest scores (RHO-LOSS), `"uniform"` is IID training: the whole batch is trained on and
        nothing is scored.
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

    uniform_fraction (`float`, *optional*, defaults to `0.0`):
        Part of the sub-batch that is drawn uniformly, whatever the scores; the rest is selected given that part.
    selection_warmup_steps (`int`, *optional*, defaults to `0`):
        Steps at the beginning that train on a uniform part of the super-batch, without scoring.
    filter_ratio_ramp_steps (`int`, *optional*, defaults to `0`):
        Steps over which the filter ratio then rises from 0: the sub-batch is chosen from a growing part of the
        super-batch, and the rest of it is not scored.
    compare_selectors (list of `str`, *optional*):
        What to compare the selection with, on the same super-batches, in the logs (`compare/...`): `"uniform"`, or
        `"<selection>/<criterion>"` such as `"independent/easy_reference"`. Nothing is trained on these. Joint ones
        need pairs, and go by their loss whatever `pair_score` is.
    source_column (`str`, *optional*):
        Column of the training data (a source, a kind of noise) of whose values the selection rates are logged
        (`selection_rate/...`). It plays no part in the selection.

    > Parameters that control scoring and loss

    objective (`str`, *optional*):
        `"contrastive"`, `"classification"` (a label for each image or text) or `"language_model"`. Default: what the
        learner is made for. Joint selection needs pairs, as `"contrastive"` has them.
    scoring (`str`, *optional*, defaults to `"learner"`):
        Who is compared with the reference: the `"learner"`, or a `"proxy"`, a small model that is trained beside it on
        the same sub-batches (arXiv 2312.05328), so that scoring does not cost forwards of a large learner.
    proxy_learning_rate (`float`, *optional*):
        Peak learning rate of the proxy. Default: that of the learner.
    pair_score (`str`, *optional*, defaults to `"loss"`):
        What stands for the loss of a pair in a score: the `"loss"` itself, or `"similarity"`, minus the product of the
        two embeddings (ActiveCLIP), for independent and top-k selection.
    distillation_weight (`float`, *optional*, defaults to `0.0`):
        Weight of a second loss on the sub-batch: the reference's distribution over the batch is the learner's target
        (ACED, arXiv 2411.18674).
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
        `"online"` is a model that starts with `ref_model`'s weights (none are needed: by default fresh ones) and is
        trained beside the learner, on whole super-batches.
    online_reference_learning_rate (`float`, *optional*):
        Peak learning rate of an online reference. Default: twice that of the learner.
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

    def __post_init__(self) -> None:
        self._read()
        self._fill_in()
        check_selection(self)
        check_training(self)
        if self.data_seed is None:
            self.data_seed = self.seed
        super().__post_init__()

    def _read(self) -> None:
        """Numbers that came as words (YAML reads `1e-4` as one), and a lone selector without its list."""
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
        """Options that are not given, from the preset and then from the defaults."""
        if self.preset is not None:
            check_choice("preset", self.preset, tuple(PRESETS))
        for name, value in {**DEFAULTS, **PRESETS.get(self.preset, {})}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer saves, and pushes, a pickle of the arguments with each checkpoint.
        return {**self.__dict__, "hub_token": None}

    @property
    def selects(self) -> bool:
        """Whether examples are scored and selected: with any selection but `"uniform"`."""
        return SELECTIONS[self.settings.selection].scores

    @property
    def settings(self) -> SelectionSettings:
        """The options that a preset can fill in, with the values that this run uses."""
        return SelectionSettings(**{one.name: getattr(self, one.name) for one in fields(SelectionSettings)})

    def selector(self, loss: str | None = None) -> Selector:
        """
        Make the selector of the run.

        Args:
            loss (`str`, *optional*): `"sigmoid"` or `"softmax"`: the loss of pairs, where the objective has pairs.
        """
        settings = self.settings
        chosen = SELECTIONS[settings.selection]
        return chosen(
            settings.criterion if chosen.scores else None,
            loss="similarity" if settings.pair_score == "similarity" else loss,
            n_chunks=self.n_chunks,
            gain=self.selection_gain,
            uniform_fraction=self.uniform_fraction,
        )

    @property
    def scored_models(self) -> tuple[str, ...]:
        """
        Which of `"learner"` (or its proxy) and `"reference"` score the super-batch: those that the criterion compares,
        or that of a selector in `compare_selectors`.
        """
        if not self.selects:
            return ()
        others = [Selector.parse(name) for name in self.compare_selectors or ()]
        needed = {*self.selector().models(), *(model for other in others for model in other.models())}
        return tuple(model for model in ("learner", "reference") if model in needed)

    @property
    def uses_reference(self) -> bool:
        """Whether a reference is asked at all."""
        return "reference" in self.scored_models or self.distillation_weight > 0

    @property
    def selection_settings(self) -> dict[str, Any]:
        """What decides which examples are selected; a resumed run is compared with its checkpoint in these."""
        names = ("selection", "criterion", "n_chunks", "selection_gain", "selection_scope", "scoring_view")
        names += ("low_resolution_fraction", "seed", "data_seed", "sub_batch_size", "super_batch_size")
        names += ("pair_score", "scoring", "reference", "uniform_fraction")
        names += ("selection_warmup_steps", "filter_ratio_ramp_steps")
        return {name: getattr(self, name) for name in names}

    @property
    def per_device_super_batch_size(self) -> int:
        """Examples loaded and scored per step and device; for `selection="uniform"` the sub-batch itself."""
        if not self.selects:
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


# Its public place, which is also the one in every pickled `training_args.bin`.
JESTConfig.__module__ = "jest_hf.config"


__all__ = ["JESTConfig", "SelectionSettings"]
