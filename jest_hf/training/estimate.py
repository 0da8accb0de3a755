# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The cost of a run from configurations alone, for several ways of selecting side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from jest_hf.config import JESTConfig
from jest_hf.images.views import View
from jest_hf.models import check_view, embedding_width, family_of
from jest_hf.report.counting import Trained, flops_of_inputs, update_flops
from jest_hf.selection import CRITERIA
from jest_hf.training.costs import RunCosts, checkpointing_of
from jest_hf.training.price import changed, cheaper_view, decoded_images, iid_step, two_stages


@dataclass(frozen=True)
class Models:
    """
    Configurations of the models of a run.

    Args:
        learner ([`~transformers.PretrainedConfig`]): The learner.
        reference ([`~transformers.PretrainedConfig`]): The reference, whether the run uses one or not.
        proxy ([`~transformers.PretrainedConfig`]): The proxy, whether the run uses one or not.
        adapter (`peft.PeftConfig`, *optional*): The adapter that is trained in place of all weights.
    """

    learner: PretrainedConfig
    reference: PretrainedConfig
    proxy: PretrainedConfig
    adapter: Any = None


@dataclass(frozen=True)
class Way:
    """
    What one way of selecting costs.

    Args:
        name (`str`): What it is called.
        setting (`str`): The options that make it, as flags.
        flops_of_step (`float`): FLOPs of a step on all devices.
        relative_to_iid (`float`): The same, in IID steps.
        decoded_images (`int`): Images that a step decodes, on all devices.
        flops_of_run (`float`, *optional*): FLOPs of all steps, and of caching the reference; `None` where the number
            of steps or of rows is unknown.
        relative_of_run (`float`, *optional*): The same, in IID runs of as many steps.
        examples_share (`float`, *optional*): The share of the examples of an IID run that costs as much as that run.
    """

    name: str
    setting: str
    flops_of_step: float
    relative_to_iid: float
    decoded_images: int
    flops_of_run: float | None
    relative_of_run: float | None
    examples_share: float | None


@dataclass(frozen=True)
class Estimate:
    """
    The cost of a run, and of other ways of selecting with the same models and sub-batch.

    Args:
        forward (`dict`): FLOPs of one example, by model, as in [`~report.flops.flops_of_step`].
        sub_batch, super_batch (`int`): Examples trained on and scored in a step of the run, on all devices.
        devices (`int`): Devices that train together.
        n_steps (`int`, *optional*): Steps of the run, where they are known.
        super_batch_bytes (`int`): Bytes of the decoded rows of a step on one device.
        cache_bytes (`int`, *optional*): Bytes of a reference cache in float16, where the number of rows is known.
        ways (tuple of [`Way`]): The run as it is set first, then IID training and the others.
    """

    forward: Mapping[str, float]
    sub_batch: int
    super_batch: int
    devices: int
    n_steps: int | None
    super_batch_bytes: int
    cache_bytes: int | None
    ways: tuple[Way, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def estimate(
    args: JESTConfig, models: Models, *, n_rows: int | None = None, devices: int = 1, text_length: int | None = None
) -> Estimate:
    """
    Estimate the cost of a run. No model has weights, and no data are read.

    Args:
        args ([`JESTConfig`]): Options of the run, on one device.
        models ([`Models`]): Configurations of dual encoders.
        n_rows (`int`, *optional*): Rows of the training data.
        devices (`int`, *optional*, defaults to 1): Devices that train together.
        text_length (`int`, *optional*): Tokens that texts are padded to. Default: the longest that a model takes.

    Raises:
        ValueError: for a `scoring_view` that does not suit the learner, or an adapter that does not.
    """
    if args.scoring_view is not None:
        check_view(View.parse(args.scoring_view), models.learner)
    row_bytes = _row_bytes(args, models, text_length)
    per_device = decoded_images(args, embedding_width(models.reference))
    counts = _Counts(args, models, text_length)
    args = changed(args, per_device_train_batch_size=args.per_device_train_batch_size * devices)
    n_steps = args.max_steps if args.max_steps > 0 else None
    if n_steps is None and n_rows is not None:
        n_steps = max(1, int(n_rows // args.candidates_size * args.num_train_epochs))
    ways = []
    for name, setting, options in _ways(args, models.learner):
        ways.append(_price(name, setting, changed(args, **options), counts, n_rows, n_steps))
    return Estimate(
        forward=counts.of(args),
        sub_batch=args.sub_batch_size,
        super_batch=args.super_batch_size,
        devices=devices,
        n_steps=n_steps,
        super_batch_bytes=per_device * row_bytes,
        cache_bytes=None if n_rows is None else n_rows * 2 * embedding_width(models.reference) * 2,
        ways=tuple(ways),
    )


def _ways(args: JESTConfig, learner: PretrainedConfig) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, flags and options of each way, the run as it is set first."""
    given = CRITERIA[args.settings.criterion]
    live = {
        "selection": args.selection if args.selects else "joint",
        "criterion": args.criterion if given.learner and given.reference else "learnability",
        "reference": "model" if args.reference == "online" else args.reference,
        "cache_reference": False,
        "reference_cache": None,
        "prefilter_ratio": 0.0,
        "scoring_view": None,
    }
    cached = {**live, "cache_reference": True}
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("as set", "", {}),
        ("IID", "--selection uniform", {"selection": "uniform", "distillation_weight": 0.0, "scoring_view": None}),
        ("live reference", "--cache_reference False", live),
        ("cached reference", "--cache_reference True", cached),
    ]
    stages = two_stages(args)
    if stages is not None:
        flags = " ".join(f"--{name} {value}" for name, value in stages.items())
        ways.append(("two stages", f"--cache_reference True {flags}", {**cached, **stages}))
    easy = {**cached, "criterion": "easy_reference", "scoring": "learner"}
    ways.append(("easy_reference", "--cache_reference True --criterion easy_reference", easy))
    view = args.scoring_view or cheaper_view(learner)
    if view is not None:
        flexi = {**cached, "scoring_view": str(view), "scoring": "learner"}
        ways.append(("Flexi", f"--cache_reference True --scoring_view {view}", flexi))
    return ways


def _price(name: str, setting: str, args: JESTConfig, counts: _Counts, n_rows: int | None, n_steps: int | None) -> Way:
    costs = RunCosts(args, counts.of(args), counts.widths, n_rows)
    step = costs.of_step()
    iid = iid_step(step)
    share, run = 1.0 / step.relative_to_iid, None
    if n_steps is not None and (n_rows is not None or not args.cache_reference):
        run = n_steps * step.total + costs.of_cache
        share = (n_steps * iid - costs.of_cache) / (n_steps * step.total)
    return Way(
        name,
        setting,
        flops_of_step=step.total,
        relative_to_iid=step.relative_to_iid,
        decoded_images=decoded_images(args, counts.widths["reference"]),
        flops_of_run=run,
        relative_of_run=None if run is None or n_steps is None else run / (n_steps * iid),
        examples_share=share if share > 0 else None,
    )


class _Counts:
    """FLOPs of one example by model, each counted once; `of` picks those that a run with some options needs."""

    def __init__(self, args: JESTConfig, models: Models, text_length: int | None) -> None:
        self.models = models
        self.text_length = text_length
        self.trained = Trained(models.adapter, None, checkpointing_of(args))
        self.widths = {"learner": embedding_width(models.learner), "reference": embedding_width(models.reference)}
        self._forward: dict[int, float] = {}
        self._learner: dict[str | None, dict[str, float]] = {}

    def of(self, args: JESTConfig) -> dict[str, float]:
        flops = dict(self._learner_flops(None))
        if args.scoring_view is not None:
            flops |= self._learner_flops(args.scoring_view)
        if args.uses_reference and args.reference_cache is None:
            flops["reference"] = self._of_model(self.models.reference)
        if args.selects and args.scoring == "proxy":
            flops["proxy"] = self._of_model(self.models.proxy)
        return flops

    def _learner_flops(self, view: str | None) -> dict[str, float]:
        if view not in self._learner:
            at_view = None if view is None else View.parse(view)
            name = "" if view is None else "_at_view"
            config = self.models.learner
            inputs = inputs_of(config, self.text_length)
            if self.trained.is_whole:
                plain = sum(flops_of_inputs(config, inputs, at_view).values()) if view else self._of_model(config)
                flops = {f"learner{name}": plain}
            else:
                forward, update = update_flops(config, inputs, self.trained, at_view)
                flops = {f"learner{name}": float(forward), f"learner_update{name}": float(update)}
            self._learner[view] = flops
        return self._learner[view]

    def _of_model(self, config: PretrainedConfig) -> float:
        if id(config) not in self._forward:
            flops = flops_of_inputs(config, inputs_of(config, self.text_length))
            self._forward[id(config)] = float(sum(flops.values()))
        return self._forward[id(config)]


def inputs_of(config: Any, text_length: int | None) -> dict[str, torch.Tensor]:
    """Return inputs of one example for a dual encoder, without values."""
    vision, longest = config.vision_config, config.text_config.max_position_embeddings
    shape = (1, vision.num_channels, getattr(vision, "image_size", 0), getattr(vision, "image_size", 0))
    if family_of(config).patches:
        shape = (1, vision.num_patches, vision.num_channels * vision.patch_size**2)  # type: ignore[assignment]
    length = longest if text_length is None else min(text_length, longest)
    return {
        "pixel_values": torch.empty(shape, device="meta", dtype=torch.uint8),
        "input_ids": torch.empty((1, length), device="meta", dtype=torch.int64),
    }


def _row_bytes(args: JESTConfig, models: Models, text_length: int | None) -> int:
    """Bytes of a collated row: images and texts of the learner, and of a reference that reads others."""
    configs = [models.learner]
    live = args.uses_reference and not args.cache_reference and args.reference_cache is None
    if (live or args.scoring == "proxy") and models.reference is not models.learner:
        configs.append(models.reference)
    seen: set[tuple[str, Any]] = set()
    total = 0
    for config in configs:
        for name, value in inputs_of(config, text_length).items():
            kind = (name, value.shape)
            masked = name == "input_ids" and family_of(config).attention_mask
            total += 0 if kind in seen else value.nbytes * (1 + masked)
            seen.add(kind)
    return total


__all__ = ["Estimate", "Models", "Way", "estimate", "inputs_of"]
