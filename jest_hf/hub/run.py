# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a trainer knows about its run: the `RunSummary` that a card is written from, and the card itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jest_hf.hub.card_file import write_card
from jest_hf.hub.card_summary import RunSummary
from jest_hf.hub.model_card import run_card
from jest_hf.models import base_model, has_adapter
from jest_hf.reference.reference import CachedReference
from jest_hf.report.plots import plot_selection


if TYPE_CHECKING:
    from jest_hf.trainer import JESTTrainer

LIBRARIES = ("jest_hf", "transformers", "torch", "datasets", "accelerate")
PLOT = "selection.png"
# What tells selected examples from rejected ones, by the criterion: the score itself, up to its sign.
SHOWN = {"learnability": "learnability", "easy_reference": "reference_loss", "hard_learner": "learner_loss"}


def write_run_card(trainer: JESTTrainer, **about: Any) -> None:
    """
    Writes the card of a trainer's run, and the plot in it, to `output_dir`; what a user has written into the
    `README.md` there stays ([`~jest_hf.hub.write_card`]). On the main process alone.

    Args:
        trainer ([`~jest_hf.JESTTrainer`]):
            During its run or after it.
        **about:
            What the trainer does not know, see [`summarise_run`].

    Raises:
        `ValueError`: if the file begins with metadata that cannot be read.
    """
    folder = Path(trainer.args.output_dir)
    summary = summarise_run(trainer, **about)
    points = _selected_and_rejected(trainer)
    if any(len(line) > 1 for line in points.values()):
        folder.mkdir(parents=True, exist_ok=True)
        plot_selection(points, folder / PLOT, SHOWN[trainer.args.criterion].replace("_", " "))
        summary = replace(summary, plot=PLOT)
    write_card(run_card(summary), folder / "README.md")


def summarise_run(
    trainer: JESTTrainer,
    *,
    role: str = "learner",
    language: str | list[str] | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    dataset: str | list[str] | None = None,
    eval_dataset: str | None = None,
    sources: Mapping[str, tuple[int, int]] | None = None,
    **unused: Any,
) -> RunSummary:
    """
    The summary of a trainer's run. Arguments are those of `Trainer.create_model_card`, as far as a card has room for
    them, and:

    Args:
        role (`str`, *optional*, defaults to `"learner"`):
            `"reference"` for a model that was trained to be one.
        eval_dataset (`str`, *optional*):
            What the metrics were measured on.
        sources (`dict[str, tuple[int, int]]`, *optional*):
            By where examples came from, how many of them were selected and how many were seen.
    """
    args, state, statistics, config = trainer.args, trainer.state, trainer.statistics, trainer.model.config
    adapter = has_adapter(trainer.model)
    metrics, evaluated_at = _latest_metrics(trainer)
    times = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
    return RunSummary(
        architecture=type(base_model(trainer.model)).__name__,
        selection=args.selection,
        loss=trainer.objective.loss_kind or "cross-entropy",
        role=role,
        criterion=args.criterion,
        preset=args.preset,
        pair_score=args.pair_score if args.pair_score != "loss" else None,
        proxy=args.scoring == "proxy",
        online_reference=args.reference == "online",
        filter_ratio=args.filter_ratio,
        n_chunks=args.n_chunks,
        gain=args.selection_gain,
        scoring_view=args.scoring_view,
        low_resolution_fraction=args.low_resolution_fraction,
        sub_batch_size=args.sub_batch_size,
        super_batch_size=args.super_batch_size,
        model_id=trainer.hub_model_id or model_name,  # the Trainer passes the last part of the id as the name
        name=model_name,
        adapter=adapter,
        text_length=trainer.data_collator.texts[""].max_length if trainer.objective.pairs else None,
        base_model=finetuned_from or config._name_or_path or None,
        datasets=_listed(dataset),
        eval_dataset=eval_dataset,
        **_reference_of(trainer),
        steps=state.global_step,
        examples_trained=statistics.trained,
        examples_seen=statistics.seen,
        rows_skipped=statistics.skipped,
        unique_share=statistics.unique_share if statistics.trained else None,
        sources=sources or statistics.sources,
        flops=trainer.run_flops,
        wall_time=times[-1] if times else None,
        hardware=hardware(args.device, args.world_size),
        metrics=metrics,
        evaluated_at=evaluated_at,
        versions=versions((*LIBRARIES, "peft") if adapter else LIBRARIES),
        license=license,
        language=_listed(language),
        tags=_listed(tags),
    )


def _reference_of(trainer: JESTTrainer) -> dict[str, Any]:
    """What is known about the reference, by the summary's names for it."""
    args, reference = trainer.args, trainer.reference
    if trainer.ref_model is not None:  # an engine around it has another configuration
        config = trainer.ref_model.config
        commit = getattr(config, "_commit_hash", None)  # set by from_pretrained alone
        return {"reference": config._name_or_path or None, "reference_revision": commit or args.ref_model_revision}
    if reference is None:
        return {}
    known = {"reference": reference.name, "reference_revision": reference.commit}
    if isinstance(reference, CachedReference):
        return known | {
            "reference_weights": reference.cache.manifest["reference"].get("weights"),
            "reference_cache": args.reference_cache,
            "reference_cache_revision": args.reference_cache_revision,
        }
    return known | {"reference_is_backbone": args.reference == "adapter"}


def _latest_metrics(trainer: JESTTrainer) -> tuple[dict[str, float], int | None]:
    """
    What was last measured of the weights that the card goes with, and after which step. Once training has ended with
    `load_best_model_at_end`, these are not the last step's.
    """
    history, best = trainer.state.log_history, trainer.state.best_global_step
    ends = [index for index, entry in enumerate(history) if "train_runtime" in entry]
    if ends and trainer.args.load_best_model_at_end and best is not None:
        during, after = history[: ends[-1]], history[ends[-1] :]
        history = [entry for entry in during if entry["step"] == best] + after
    metrics, step = {}, None
    for entry in history:
        measured = {name: value for name, value in entry.items() if name.startswith("eval_")}
        if measured:
            metrics, step = metrics | measured, entry["step"]
    return metrics, step


def _selected_and_rejected(trainer: JESTTrainer) -> dict[str, list[tuple[int, float]]]:
    """By step, what selected and rejected examples were like; nothing of a run that did not select."""
    shown = SHOWN[trainer.args.criterion]
    return {
        part: [
            (entry["step"], entry[f"{part}/{shown}"])
            for entry in trainer.state.log_history
            if f"{part}/{shown}" in entry
        ]
        for part in ("selected", "rejected")
    }


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


__all__ = ["hardware", "summarise_run", "versions", "write_run_card"]
