# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a step will cost, before it is taken; and what it would cost with other settings."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils import logging

from jest_hf.config import JESTConfig
from jest_hf.distributed import Ranks
from jest_hf.images.views import View
from jest_hf.models import FAMILIES, Reader, check_view, family_of
from jest_hf.objectives import Objective
from jest_hf.reference import ReferenceSource
from jest_hf.report.flops import StepFlops
from jest_hf.selection import CRITERIA
from jest_hf.training.costs import RunCosts, checkpointing_of, dry_run, learner_flops
from jest_hf.training.early_selection import EarlySelection


logger = logging.get_logger(__name__)

DEAR = 3.0  # IID steps; a step that costs more is worth a warning
_FILTER_OF_TWO_STAGES = 0.5
_BESIDE, _CACHE = "models beside the learner", "cache_reference=True"


def changed(args: JESTConfig, **options: Any) -> JESTConfig:
    """
    Return a copy of the options with other values, to count with.

    It is not made by its constructor, which would set up the device once more. Values are not checked.
    """
    other = copy.copy(args)
    vars(other).update(options)
    return other


def two_stages(args: JESTConfig) -> dict[str, Any] | None:
    """
    Return the options of two stages that draw as many rows of as many candidates; `None` where a filter ratio of 0.5
    or less leaves nothing to a first stage.
    """
    kept = 1.0 - args.settings.filter_ratio
    if kept >= 1.0 - _FILTER_OF_TWO_STAGES:
        return None
    ratio = round(1.0 - kept / (1.0 - _FILTER_OF_TWO_STAGES), 4)
    return {"prefilter_ratio": ratio, "filter_ratio": _FILTER_OF_TWO_STAGES}


def cheaper_view(config: PretrainedConfig) -> View | None:
    """Return a view with about a quarter of the patches, or `None` if the model accepts none."""
    if config.model_type not in FAMILIES:
        return None
    vision: Any = config.vision_config
    kinds = family_of(config).views
    if "num_patches" in kinds:
        return View("num_patches", max(1, vision.num_patches // 4))
    if not {"patch", "image"} <= set(kinds):
        return None
    patch, size = vision.patch_size, vision.image_size
    for view in (View("patch", 2 * patch), View("image", max(patch, size // 2 // patch * patch))):
        try:
            check_view(view, config)
        except ValueError:
            continue
        return view
    return None


def iid_step(step: StepFlops) -> float:
    """Return the FLOPs of an IID step that trains on as many examples with the same settings."""
    return step.training + step.training_saved


def decoded_images(args: JESTConfig, width: int) -> int:
    """
    Return the number of images that a step decodes, on all devices.

    Args:
        args ([`JESTConfig`]): The options.
        width (`int`): Width of the reference's embeddings.
    """
    cached = args.cache_reference or args.reference_cache is not None
    source = cast(ReferenceSource, SimpleNamespace(reads_images=False, width=width)) if cached else None
    try:
        early = EarlySelection.where_it_serves(args, source, None, None, Ranks())
    except ValueError:  # of a run that cannot start
        return args.super_batch_size
    return args.sub_batch_size if early is not None and early.is_final else args.super_batch_size


def describe(costs: RunCosts, row_bytes: int) -> str:
    """
    Describe the price of a step in one line.

    Args:
        costs ([`RunCosts`]): FLOPs of the run.
        row_bytes (`int`): Bytes of a row of the super-batch on its device.
    """
    args, step = costs.args, costs.of_step()
    iid = iid_step(step)
    parts = {
        "reference": step.reference,
        "learner scoring": step.scoring,
        "training": step.training,
        _BESIDE: step.beside,
        "drawing": step.selection,
    }
    shown = ", ".join(f"{name} {flops / iid:.2f}" for name, flops in parts.items() if flops or name != _BESIDE)
    text = f"A step costs {step.relative_to_iid:.2f} IID steps ({shown})"
    if costs.of_cache:
        text += f"; caching the reference costs {costs.of_cache / iid:,.0f} IID steps once"
    n_rows = decoded_images(args, costs.widths.get("reference", 0)) // int(args.world_size)
    return f"{text}. The {n_rows:,} decoded rows take {n_rows * row_bytes / 1e6:,.1f} MB on each device."


def savings(costs: RunCosts, at_view: Callable[[], tuple[View, Mapping[str, float]] | None]) -> dict[str, float]:
    """
    Return what a step would cost with other settings, in IID steps, the settings that save most first.

    Args:
        costs ([`RunCosts`]): FLOPs of the run.
        at_view (`Callable`): Returns a cheaper view of the learner, and the FLOPs of its examples with that view; or
            `None`. Called only where caching does not help, since a model is counted for it.

    Returns:
        `dict`: cost by setting. Caching comes first where it is possible; the other settings that need a cached
        reference are then counted with it.
    """
    found = {text: cost for text, cost in _savings(costs, at_view) if cost < costs.of_step().relative_to_iid}
    first = [text for text in found if text == _CACHE]
    rest = sorted((text for text in found if text != _CACHE), key=lambda text: found[text])
    return {text: found[text] for text in first + rest}


def _savings(
    costs: RunCosts, at_view: Callable[[], tuple[View, Mapping[str, float]] | None]
) -> Iterator[tuple[str, float]]:
    args, forward = costs.args, costs.forward
    can_cache = _can_cache(costs)
    is_cached = args.cache_reference or args.reference_cache is not None
    cache: dict[str, Any] = {"cache_reference": True} if can_cache else {}
    with_it = f" and {_CACHE}" if can_cache else ""
    if can_cache:
        yield _CACHE, _cost(costs, **cache)
    criterion = CRITERIA[args.settings.criterion]
    if criterion.learner and criterion.reference and args.scoring == "learner":
        yield f"criterion='easy_reference'{with_it}", _cost(costs, criterion="easy_reference", **cache)
    stages = two_stages(args)
    if stages is not None and (can_cache or is_cached) and not args.settings.prefilter_ratio:
        text = ", ".join(f"{name}={value}" for name, value in stages.items())
        yield f"{text}{with_it}", _cost(costs, **stages, **cache)
    if forward.get("reference", 0.0) > 1.1 * forward["learner"] and not is_cached:
        smaller = RunCosts(args, {**forward, "reference": forward["learner"]}, costs.widths, None)
        yield "a reference of the learner's size", smaller.of_step().relative_to_iid
    if not can_cache and not is_cached and args.scoring_view is None and args.scoring == "learner":
        viewed = at_view() if criterion.learner else None
        if viewed is not None:
            flexi = RunCosts(changed(args, scoring_view=str(viewed[0])), viewed[1], costs.widths, None)
            yield f"scoring_view='{viewed[0]}'", flexi.of_step().relative_to_iid
    if args.settings.filter_ratio > 0.5:
        yield "filter_ratio=0.5", _cost(costs, filter_ratio=0.5)


def _can_cache(costs: RunCosts) -> bool:
    """Whether caching would spare the run a reference that scores at every step, and cost less than it spares."""
    args = costs.args
    if not costs.can_cache or costs.n_rows is None or args.cache_reference or not costs.of_step().reference:
        return False
    # A cache embeds all rows, and a run of less than an epoch does not see them all.
    passes = args.max_steps * args.candidates_size / costs.n_rows if args.max_steps > 0 else args.num_train_epochs
    return passes > 1


def _once(costs: RunCosts) -> str:
    """The cost of caching, in IID steps."""
    cached = RunCosts(changed(costs.args, cache_reference=True), costs.forward, costs.widths, costs.n_rows)
    return f"{cached.of_cache / iid_step(costs.of_step()):,.0f} IID steps once"


def _cost(costs: RunCosts, **options: Any) -> float:
    other = RunCosts(changed(costs.args, **options), costs.forward, costs.widths, None)
    return other.of_step().relative_to_iid


def announce(costs: RunCosts, row_bytes: int, at_view: Callable[[], tuple[View, Mapping[str, float]] | None]) -> None:
    """
    Say what a step costs, on the console beside the progress bar; and warn of more than 3 IID steps, with the two
    settings that save most. Arguments as in [`describe`] and [`savings`].
    """
    if not costs.forward or not costs.args.selects:
        return
    line, cost = describe(costs, row_bytes), costs.of_step().relative_to_iid
    if cost > DEAR:
        ways = [
            f"{text} ({less:.2f}{f', and {_once(costs)}' if _CACHE in text else ''})"
            for text, less in list(savings(costs, at_view).items())[:2]
        ]
        logger.warning(f"{line} What saves most: {'; '.join(ways)}." if ways else line)
        return
    if _can_cache(costs):
        line += f" With {_CACHE} a step costs {_cost(costs, cache_reference=True):.2f}, and the cache {_once(costs)}."
    if costs.args.disable_tqdm:
        logger.info(line)
    else:
        print(line, file=sys.stderr)


def price_run(
    args: JESTConfig,
    batch: Mapping[str, Tensor],
    objective: Objective,
    readers: Mapping[str, tuple[Reader, PretrainedConfig]],
    view: View | None,
    learner: nn.Module,
    *,
    cached_width: int | None,
    n_rows: int | None,
) -> RunCosts:
    """
    Check one collated row against every model, count what a step will cost, and say it on the first process.

    Args:
        args ([`JESTConfig`]): Options of the run.
        batch, objective, readers, view, learner: As in [`~training.costs.dry_run`].
        cached_width (`int`, *optional*): Width of cached embeddings of the reference.
        n_rows (`int`, *optional*): Rows of the training data; `None` for a stream.

    Raises:
        ValueError: As [`~training.costs.dry_run`].
    """
    checkpointing = checkpointing_of(args)
    forward, widths = dry_run(batch, objective, readers, view, learner, checkpointing)
    if cached_width is not None:
        widths["reference"] = cached_width
    can_cache = n_rows is not None and args.reference != "online" and objective.cached_as is not None
    costs = RunCosts(args, forward, widths, n_rows, can_cache)

    def at_view() -> tuple[View, Mapping[str, float]] | None:
        reader, config = readers["learner"]
        cheaper = cheaper_view(config) if objective.pairs else None
        if cheaper is None:
            return None
        inputs = reader.inputs(batch)
        viewed = {"learner_at_view": objective.forward_flops(config, inputs, cheaper)}
        return cheaper, {**forward, **viewed, **learner_flops(learner, inputs, cheaper, checkpointing)}

    if args.process_index == 0:
        announce(costs, sum(value.nbytes for value in batch.values() if isinstance(value, Tensor)), at_view)
    return costs


__all__ = [
    "announce",
    "changed",
    "cheaper_view",
    "decoded_images",
    "describe",
    "iid_step",
    "price_run",
    "savings",
    "two_stages",
]
