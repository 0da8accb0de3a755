# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The facts of a training run that a model card contains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jest_hf.report.flops import StepFlops


@dataclass
class RunSummary:
    """The facts of a training run for its model card. All but the first three may be unknown: `None` or empty.

    Args:
        architecture (`str`):
            Class of the learner, for instance `"SiglipModel"`.
        selection (`str`):
            `"joint"`, `"independent"`, `"top_k"` or `"uniform"`.
        loss (`str`):
            `"sigmoid"` or `"softmax"` of pairs, `"cross-entropy"` of labels.
        role (`str`, *optional*, defaults to `"learner"`):
            `"learner"`, or `"reference"` for a model that was trained as a reference.
        criterion (`str`, *optional*):
            `"learnability"`, `"easy_reference"` or `"hard_learner"`; the card of a uniform run leaves it out.
        preset (`str`, *optional*):
            Name of the preset: the published method that the settings reproduce.
        pair_score (`str`, *optional*):
            `"similarity"` if pairs were scored by their similarity and not by their loss.
        proxy (`bool`, *optional*, defaults to `False`):
            Whether a small model that was trained beside the learner scored in place of the learner.
        online_reference (`bool`, *optional*, defaults to `False`):
            Whether the reference was trained beside the learner.
        prefilter_ratio (`float`, *optional*):
            Share of the candidates that cached scores of the reference dropped before the super-batch was decoded.
        filter_ratio (`float`, *optional*):
            The filter ratio f: the share of the super-batch that was not trained on.
        n_chunks (`int`, *optional*):
            Number of chunks of joint selection.
        gain (`float`, *optional*):
            Factor on the scores before sampling.
        precision (`str`, *optional*):
            Precision of the products of embeddings in joint selection, where it is not float32.
        scoring_view (`str`, *optional*):
            The cheaper view of the images at which the learner scored (Flexi-JEST); `None` for full resolution.
        low_resolution_fraction (`float`, *optional*):
            Share of the sub-batch that was trained on at that view.
        scaled_jpeg_decoding (`bool`, *optional*, defaults to `False`):
            Whether large JPEGs were decoded at 1/2, 1/4 or 1/8 of their size, which changes their pixels.
        sub_batch_size (`int`, *optional*):
            Examples trained on in a step, over all ranks.
        super_batch_size (`int`, *optional*):
            Examples loaded in a step, over all ranks.
        model_id (`str`, *optional*):
            Hub id of the model. For another name, the example code of the card loads the current folder.
        name (`str`, *optional*):
            Name of the model. Default: `model_id` if it is a Hub id, or else the architecture.
        adapter (`bool`, *optional*, defaults to `False`):
            Whether the model is a `peft` adapter on `base_model`.
        text_length (`int`, *optional*):
            Tokens that captions were padded to, for models whose processor does not contain the length.
        base_model (`str`, *optional*):
            Hub id or path of the model that training started from; `None` for a model trained from scratch.
        datasets (sequence of `str`, *optional*):
            Training data: Hub ids, paths or built-in names.
        eval_dataset, eval_split (`str`, *optional*):
            The data set that the metrics were measured on, and its split.
        reference (`str`, *optional*):
            Hub id or path of the reference.
        reference_revision (`str`, *optional*):
            Branch, tag or commit of the reference.
        reference_weights (`str`, *optional*):
            sha256 of the reference's weights, for a reference without a commit.
        reference_is_backbone (`bool`, *optional*, defaults to `False`):
            Whether the reference was the learner's backbone, with another adapter or without one.
        reference_cache (`str`, *optional*):
            Hub id or path of the cache that the reference's embeddings were read from.
        reference_cache_revision (`str`, *optional*):
            Branch, tag or commit of the cache.
        steps (`int`, *optional*):
            Optimisation steps.
        examples_trained (`int`, *optional*):
            Examples trained on, repetitions counted.
        examples_seen (`int`, *optional*):
            Examples loaded, repetitions counted.
        rows_skipped (`int`, *optional*):
            Rows that could not be read, for instance broken images.
        unique_share (`float`, *optional*):
            Number of different examples trained on, as a share of all examples trained on.
        sources (`dict[str, tuple[int, int]]`, *optional*):
            By source of the examples, the number selected and the number seen.
        plot (`str`, *optional*):
            Path of the plot of the selection, relative to the card.
        flops ([`~jest_hf.report.StepFlops`], *optional*):
            FLOPs of the whole run.
        flops_convention (`str`, *optional*, defaults to `"plain"`):
            `"plain"` or `"paper"`, as in [`~jest_hf.report.step_flops`].
        wall_time (`float`, *optional*):
            Seconds of training.
        hardware (`str`, *optional*):
            For instance `"1 x NVIDIA H200"`.
        metrics (`dict[str, float]`, *optional*):
            Metrics from `evaluate()`; the card leaves out times.
        reference_metrics (`dict[str, float]`, *optional*):
            The same of the reference, for a column beside those of the model.
        evaluated_at (`int`, *optional*):
            The step after which the metrics were measured, if it is not the last step.
        versions (`dict[str, str]`, *optional*):
            Version of each library.
        license (`str`, *optional*):
            Licence of the weights, by its name on the Hub.
        language (sequence of `str`, *optional*):
            ISO codes of the captions' languages.
        tags (sequence of `str`, *optional*):
            Further tags on the Hub.
    """

    architecture: str
    selection: str
    loss: str
    role: str = "learner"
    criterion: str | None = None
    preset: str | None = None
    pair_score: str | None = None
    proxy: bool = False
    online_reference: bool = False
    filter_ratio: float | None = None
    prefilter_ratio: float | None = None
    n_chunks: int | None = None
    gain: float | None = None
    precision: str | None = None
    scoring_view: str | None = None
    low_resolution_fraction: float | None = None
    scaled_jpeg_decoding: bool = False
    sub_batch_size: int | None = None
    super_batch_size: int | None = None
    model_id: str | None = None
    name: str | None = None
    adapter: bool = False
    text_length: int | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    eval_dataset: str | None = None
    eval_split: str | None = None
    reference: str | None = None
    reference_revision: str | None = None
    reference_weights: str | None = None
    reference_is_backbone: bool = False
    reference_cache: str | None = None
    reference_cache_revision: str | None = None
    steps: int | None = None
    examples_trained: int | None = None
    examples_seen: int | None = None
    rows_skipped: int | None = None
    unique_share: float | None = None
    sources: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    plot: str | None = None
    flops: StepFlops | None = None
    flops_convention: str = "plain"
    wall_time: float | None = None
    hardware: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    reference_metrics: Mapping[str, float] = field(default_factory=dict)
    evaluated_at: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    language: Sequence[str] = ()
    tags: Sequence[str] = ()


__all__ = ["RunSummary"]
