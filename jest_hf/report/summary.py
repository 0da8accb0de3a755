# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a card tells of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jest_hf.report.flops import StepFlops


@dataclass
class RunSummary:
    """
    A training run, as its card tells it. Everything but the first three may be unknown: `None` or empty.

    Args:
        architecture (`str`):
            Class of the learner, for instance `"SiglipModel"`.
        selection (`str`):
            `"joint"`, `"independent"`, `"top_k"` or `"uniform"`.
        loss (`str`):
            `"sigmoid"` or `"softmax"` of pairs, `"cross-entropy"` of labels.
        role (`str`, *optional*, defaults to `"learner"`):
            `"learner"`, or `"reference"` for a model that was trained to be one.
        criterion (`str`, *optional*):
            `"learnability"`, `"easy_reference"` or `"hard_learner"`; not told of a uniform run.
        preset (`str`, *optional*):
            Name of the published method whose settings these are.
        pair_score (`str`, *optional*):
            What a pair was scored by, where it was not its loss: `"similarity"`.
        proxy (`bool`, *optional*, defaults to `False`):
            Whether a small model, trained beside the learner, scored in its place.
        online_reference (`bool`, *optional*, defaults to `False`):
            Whether the reference was trained beside the learner.
        filter_ratio (`float`, *optional*):
            f, the share of the super-batch that was not trained on.
        n_chunks (`int`, *optional*):
            Chunks of a joint draw.
        gain (`float`, *optional*):
            Factor on the scores before sampling.
        scoring_view (`str`, *optional*):
            The cheaper view of the images at which the learner scored (Flexi-JEST); unknown or in full: `None`.
        low_resolution_fraction (`float`, *optional*):
            The part of the sub-batch that was trained on at that view.
        sub_batch_size (`int`, *optional*):
            Examples trained on in a step, over all ranks.
        super_batch_size (`int`, *optional*):
            Examples loaded in a step, over all ranks.
        model_id (`str`, *optional*):
            Where the model will be on the Hub. The example code reads the current folder where it is not a Hub id.
        name (`str`, *optional*):
            What the model is called. Default: `model_id` if it is a Hub id, or else the architecture.
        adapter (`bool`, *optional*, defaults to `False`):
            Whether it is a `peft` adapter on `base_model`.
        text_length (`int`, *optional*):
            Tokens that captions were padded to; for models whose processor does not say.
        base_model (`str`, *optional*):
            Hub id or path of the model that training started from; unknown or from scratch: `None`.
        datasets (sequence of `str`, *optional*):
            Training sets: Hub ids, paths or built-in names.
        eval_dataset (`str`, *optional*):
            What the metrics were measured on.
        reference (`str`, *optional*):
            Hub id or path of the reference model.
        reference_revision (`str`, *optional*):
            Its branch, tag or commit.
        reference_weights (`str`, *optional*):
            sha256 of its weights; told where it has no commit.
        reference_is_backbone (`bool`, *optional*, defaults to `False`):
            Whether the reference was the learner's own backbone, with an adapter of its own or none.
        reference_cache (`str`, *optional*):
            Hub id or path of the cache from which its embeddings were read.
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
            Different examples among those trained on, as a share of them.
        sources (`dict[str, tuple[int, int]]`, *optional*):
            By where examples came from, how many of them were selected and how many were seen.
        plot (`str`, *optional*):
            An image of the selection, by its path relative to the card.
        flops ([`~jest_hf.report.StepFlops`], *optional*):
            FLOPs of the whole run.
        flops_convention (`str`, *optional*, defaults to `"plain"`):
            `"plain"` or `"paper"`, as in [`~jest_hf.report.step_flops`].
        wall_time (`float`, *optional*):
            Seconds of training.
        hardware (`str`, *optional*):
            For instance `"1 x NVIDIA H200"`.
        metrics (`dict[str, float]`, *optional*):
            What `evaluate()` returned; timings in it are passed over.
        evaluated_at (`int`, *optional*):
            The step after which they were measured; told where it is not the last one.
        versions (`dict[str, str]`, *optional*):
            Version of each library.
        license (`str`, *optional*):
            Licence of the weights, as the Hub names it.
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
    n_chunks: int | None = None
    gain: float | None = None
    scoring_view: str | None = None
    low_resolution_fraction: float | None = None
    sub_batch_size: int | None = None
    super_batch_size: int | None = None
    model_id: str | None = None
    name: str | None = None
    adapter: bool = False
    text_length: int | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    eval_dataset: str | None = None
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
    evaluated_at: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    language: Sequence[str] = ()
    tags: Sequence[str] = ()


__all__ = ["RunSummary"]
