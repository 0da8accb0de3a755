# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a trainer knows about its run, as the `RunSummary` that a card is written from."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from jest_hf.hub.model_card import RunSummary
from jest_hf.models import base_model


if TYPE_CHECKING:
    from jest_hf.trainer import JESTTrainer


def summarise_run(
    trainer: JESTTrainer,
    *,
    language: str | list[str] | None = None,
    license: str | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    dataset: str | list[str] | None = None,
    **unused: Any,
) -> RunSummary:
    """The summary of a trainer's run; the arguments are those of `Trainer.create_model_card`."""
    args, state, statistics, config = trainer.args, trainer.state, trainer.statistics, trainer.model.config
    reference, commit = _reference_of(trainer)
    last = {name: value for entry in state.log_history for name, value in entry.items()}
    return RunSummary(
        architecture=type(base_model(trainer.model)).__name__,
        selection=args.selection,
        loss=trainer.loss_kind,
        criterion=args.criterion,
        filter_ratio=args.filter_ratio,
        n_chunks=args.n_chunks,
        sub_batch_size=args.sub_batch_size,
        super_batch_size=args.super_batch_size,
        model_id=model_name or trainer.hub_model_id,
        text_length=trainer.data_collator.texts[""].max_length,
        base_model=finetuned_from or config._name_or_path or None,
        datasets=[dataset] if isinstance(dataset, str) else dataset or [],
        reference=reference,
        reference_revision=commit or args.ref_model_revision,
        steps=state.global_step,
        examples_trained=statistics.trained,
        examples_seen=statistics.seen,
        rows_skipped=statistics.skipped,
        unique_share=statistics.unique_share,
        flops=trainer.run_flops,
        wall_time=last.get("train_runtime"),
        hardware=hardware(args.device, args.world_size),
        metrics={name: value for name, value in last.items() if name.startswith("eval_")},
        versions=versions(),
        license=license,
        language=[language] if isinstance(language, str) else language or [],
    )


def _reference_of(trainer: JESTTrainer) -> tuple[str | None, str | None]:
    """Name and commit of the reference."""
    if trainer.ref_model is not None:  # an engine around it has another configuration
        return trainer.ref_model.config._name_or_path or None, getattr(trainer.ref_model.config, "_commit_hash", None)
    return (None, None) if trainer.reference is None else (trainer.reference.name, trainer.reference.commit)


def hardware(device: torch.device, world_size: int = 1) -> str:
    """The machine in words, without its name."""
    if device.type == "cuda":
        return f"{world_size} x {torch.cuda.get_device_name(device)}"
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"


def versions() -> dict[str, str]:
    """Versions of the libraries that a run depends on, as far as they are installed."""
    found = {}
    for name in ("jest_hf", "transformers", "torch", "datasets", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # jest_hf on the path of a source tree
            continue
    return found
