# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The model card of a run, and the plot in it, from the facts of the run."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerState
from transformers.utils import logging

from jest_hf.config import JESTConfig
from jest_hf.hub.card_file import write_card
from jest_hf.hub.card_parts import is_hub_id
from jest_hf.hub.model_card import run_card
from jest_hf.hub.pull import license_of
from jest_hf.models import base_model, has_adapter
from jest_hf.objectives import Objective
from jest_hf.report.flops import StepFlops
from jest_hf.report.plots import plot_selection
from jest_hf.report.statistics import RunStatistics
from jest_hf.report.summary import RunSummary
from jest_hf.selection import CRITERIA


logger = logging.get_logger(__name__)

LIBRARIES = ("jest_hf", "transformers", "torch", "datasets", "accelerate")
PLOT = "selection.png"


@dataclass(frozen=True)
class RunFacts:
    """
    What a run knows about itself, during training or after it.

    Args:
        args ([`JESTConfig`]): Options of the run.
        state ([`~transformers.TrainerState`]): Steps and logs so far.
        model ([`~transformers.PreTrainedModel`]): The learner, not wrapped.
        objective ([`Objective`]): What the run trains for.
        collator: The data collator.
        statistics ([`RunStatistics`]): Counts.
        flops ([`StepFlops`]): FLOPs so far.
        reference (`dict`): What is known about the reference, by the names of [`RunSummary`].
        hub_model_id (`str`, *optional*): Where the model is pushed to.
    """

    args: JESTConfig
    state: TrainerState
    model: nn.Module
    objective: Objective
    collator: Any
    statistics: RunStatistics
    flops: StepFlops
    reference: Mapping[str, Any]
    hub_model_id: str | None


def write_run_card(facts: RunFacts, **about: Any) -> None:
    """
    Write the card of a run, and the plot in it, to `output_dir`; what a user has written into the `README.md` there
    stays ([`~jest_hf.hub.write_card`]). On the main process alone. Without a licence in `about`, the card has the
    licence of the model that training started from, if that is on the Hub and its card names one.

    Args:
        facts ([`RunFacts`]):
            The run.
        **about:
            What the run does not know, see [`summarise_run`].

    Raises:
        ValueError: if the file begins with metadata that cannot be read.
    """
    folder = Path(str(facts.args.output_dir))
    summary = summarise_run(facts, **about)
    if summary.license is None and is_hub_id(summary.base_model):
        summary = replace(summary, license=license_of(summary.base_model))
    points = _selected_and_rejected(facts)
    if any(len(line) > 1 for line in points.values()):
        folder.mkdir(parents=True, exist_ok=True)
        plot_selection(points, folder / PLOT, _shown(facts.args).replace("_", " "))
        summary = replace(summary, plot=PLOT)
    write_card(run_card(summary), folder / "README.md")


def summarise_run(
    facts: RunFacts,
    *,
    role: str = "learner",
    language: str | list[str] | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    dataset: str | list[str] | None = None,
    eval_dataset: str | None = None,
    eval_split: str | None = None,
    reference_metrics: Mapping[str, float] | None = None,
    sources: Mapping[str, tuple[int, int]] | None = None,
    **unused: Any,
) -> RunSummary:
    """
    Summarise a run. Arguments are those of `Trainer.create_model_card`, as far as a card has room for them, and:

    Args:
        facts ([`RunFacts`]):
            The run.
        role (`str`, *optional*, defaults to `"learner"`):
            `"reference"` for a model that was trained to be one.
        eval_dataset, eval_split (`str`, *optional*):
            What the metrics were measured on: data set and split.
        reference_metrics (`dict[str, float]`, *optional*):
            The same metrics of the reference.
        sources (`dict[str, tuple[int, int]]`, *optional*):
            By where examples came from, how many of them were selected and how many were seen.
    """
    args, state, statistics = facts.args, facts.state, facts.statistics
    adapter, learner = has_adapter(facts.model), base_model(facts.model)
    metrics, evaluated_at = _latest_metrics(facts)
    times = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    return RunSummary(
        architecture=type(learner).__name__,
        selection=args.settings.selection,
        loss=facts.objective.loss_name,
        role=role,
        criterion=args.criterion,
        preset=args.preset,
        pair_score=args.pair_score if args.pair_score != "loss" else None,
        proxy=args.scoring == "proxy",
        online_reference=args.reference == "online",
        prefilter_ratio=args.prefilter_ratio or None,
        filter_ratio=args.filter_ratio,
        n_chunks=args.n_chunks,
        gain=args.selection_gain,
        precision=args.selection_precision if args.selection_precision != "float32" else None,
        scoring_view=args.scoring_view,
        low_resolution_fraction=args.low_resolution_fraction,
        scaled_jpeg_decoding=getattr(facts.collator, "scaled_jpeg_decoding", False),
        sub_batch_size=args.sub_batch_size,
        super_batch_size=args.super_batch_size,
        model_id=facts.hub_model_id or model_name,  # the Trainer passes the last part of the id as the name
        name=model_name,
        adapter=adapter,
        text_length=facts.objective.text_length(facts.collator),
        base_model=finetuned_from or learner.config._name_or_path or None,
        datasets=_listed(dataset),
        eval_dataset=eval_dataset,
        eval_split=eval_split,
        **facts.reference,
        steps=state.global_step,
        examples_trained=statistics.trained,
        examples_seen=statistics.seen,
        rows_skipped=statistics.skipped,
        unique_share=statistics.unique_share if statistics.trained else None,
        sources=sources or statistics.sources,
        flops=facts.flops,
        wall_time=times[-1] if times else None,
        hardware=hardware(args.device, args.world_size),
        metrics=metrics,
        reference_metrics=reference_metrics or {},
        evaluated_at=evaluated_at,
        versions=versions((*LIBRARIES, "peft") if adapter else LIBRARIES),
        license=license,
        language=_listed(language),
        tags=_listed(tags),
    )


def try_card(write: Callable[[], None]) -> None:
    """Write the card of a run that goes on: a README.md that somebody has edited is no reason to end it."""
    try:
        write()
    except ValueError as error:
        logger.warning("The model card is left as it is: %s", error)


def _latest_metrics(facts: RunFacts) -> tuple[dict[str, float], int | None]:
    """
    What was last measured of the weights that the card goes with, and after which step. Once training has ended with
    `load_best_model_at_end`, these are not the last step's.
    """
    history, best = facts.state.log_history, facts.state.best_global_step
    ends = [index for index, entry in enumerate(history) if "train_runtime" in entry]
    if ends and facts.args.load_best_model_at_end and best is not None:
        during, after = history[: ends[-1]], history[ends[-1] :]
        history = [entry for entry in during if entry["step"] == best] + after
    metrics: dict[str, float] = {}
    step = None
    for entry in history:
        measured = {name: value for name, value in entry.items() if name.startswith("eval_")}
        if measured:
            metrics, step = metrics | measured, int(entry["step"])
    return metrics, step


def _selected_and_rejected(facts: RunFacts) -> dict[str, list[tuple[int, float]]]:
    """By step, what selected and rejected examples were like; nothing of a run that did not select."""
    shown = _shown(facts.args)
    return {
        part: [
            (int(entry["step"]), entry[f"{part}/{shown}"])
            for entry in facts.state.log_history
            if f"{part}/{shown}" in entry
        ]
        for part in ("selected", "rejected")
    }


def _shown(args: JESTConfig) -> str:
    """The metric that tells selected examples from rejected ones: the score itself, up to its sign."""
    return CRITERIA[args.settings.criterion].shown


def _listed(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def hardware(device: torch.device, world_size: int = 1) -> str:
    """The machine in words, without its name."""
    if device.type == "cuda":
        return f"{world_size} x {torch.cuda.get_device_name(device)}"
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"


def versions(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Versions of the libraries that a run depends on, as far as they are installed."""
    found = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # jest_hf on the path of a source tree
            continue
    return found


__all__ = ["RunFacts", "hardware", "summarise_run", "try_card", "versions", "write_run_card"]
