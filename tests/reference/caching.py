# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Reference caches of tiny data sets, shared by the tests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jest_hf import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.models import DualEncoder, expose_temperature
from jest_hf.reference import ReferenceCache, identify_reference, write_cache
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


def reference_model(seed: int = 1, build: Any = tiny_siglip) -> nn.Module:
    model = build(seed).eval().requires_grad_(False)
    expose_temperature(model)
    return model


def make_cache(
    folder: Path | str,
    rows: Any = None,
    *,
    model: nn.Module | None = None,
    processor: Any = None,
    collator: JESTDataCollator | None = None,
    wrapped: nn.Module | None = None,
    reference: dict[str, Any] | None = None,
    **options: Any,
) -> ReferenceCache:
    """A cache of 23 random rows in shards of 5 and batches of 2; `wrapped` is called in place of `model`, and the
    fields of `reference` are added to its identity."""
    model = reference_model() if model is None else model
    processor = processor or tiny_siglip_processor()
    settings = {"batch_size": 2, "shard_rows": 5, "dtype": "float32", "disable_tqdm": True, **options}
    return write_cache(
        folder,
        DualEncoder(model.config, processor, prefix="ref_"),
        model if wrapped is None else wrapped,
        model.config,
        Rows(random_rows(23) if rows is None else rows),
        collator or JESTDataCollator(processor),
        reference=identify_reference(model) | (reference or {}),
        **settings,
    )


def contents(folder: Path | str) -> dict[str, str]:
    """sha256 of every file in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def super_batch(ids: list[int], **columns: list[int]) -> dict[str, torch.Tensor]:
    """What a cached reference reads of a super-batch."""
    columns = {"example_id": ids, **columns}
    return {"valid": torch.ones(len(ids), dtype=torch.bool)} | {
        name: torch.tensor(values) for name, values in columns.items()
    }
