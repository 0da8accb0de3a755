# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a trainer knows about its run, as the `RunSummary` that a card is written from."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from jest_hf.hub.model_card import RunSummary
from jest_hf.report.flops import StepFlops
from jest_hf.report.metrics import RunStatistics


def summarise_run(
    args: Any,
    state: Any,
    statistics: RunStatistics,
    flops: StepFlops,
    loss: str,
    config: Any,
    ref_config: Any | None,
) -> RunSummary:
    """The summary of a run from its arguments, the Trainer's state, its statistics and its FLOPs."""
    last = {name: value for entry in state.log_history for name, value in entry.items()}
    return RunSummary(
        architecture=config.model_type,
        selection=args.selection,
        loss=loss,
        criterion=args.criterion,
        filter_ratio=args.filter_ratio,
        n_chunks=args.n_chunks,
        sub_batch_size=args.per_device_train_batch_size,
        super_batch_size=args.per_device_super_batch_size,
        base_model=config._name_or_path or None,
        reference=ref_config._name_or_path or None if ref_config is not None else None,
        reference_revision=args.ref_model_revision,
        steps=state.global_step,
        examples_trained=statistics.trained,
        examples_seen=statistics.seen,
        rows_skipped=statistics.skipped,
        unique_share=statistics.unique_share,
        flops=flops,
        wall_time=last.get("train_runtime"),
        hardware=hardware(args.device),
        metrics={name: value for name, value in last.items() if name.startswith("eval_")},
        versions=versions(),
    )


def hardware(device: torch.device) -> str:
    """The machine in words, without its name."""
    if device.type == "cuda":
        return f"1 x {torch.cuda.get_device_name(device)}"
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
