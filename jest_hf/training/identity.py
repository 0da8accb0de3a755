# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run selects with, and from: compared at a resume, where another reference or other rows would go unnoticed.

Samples, since a run starts often: of each tensor of the reference, and of the rows. [`jest_hf.reference`] identifies a
reference and a data set for a cache, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from os import PathLike, path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jest_hf.data.rows import Rows
from jest_hf.data.stream import is_stream
from jest_hf.models import has_adapter
from jest_hf.objectives import Objective
from jest_hf.reference import ReferenceCache


SAMPLED_ROWS = 16
SAMPLED_VALUES = 64  # of each tensor, at its beginning and at its end
PLAIN = (str, int, float, bool, type(None))


def identify_run(
    objective: Objective,
    reference: nn.Module | ReferenceCache | None,
    dataset: Any,
    image_column: str | None,
    first_row: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """
    Describe the loss, the reference and the training rows of a run.

    Args:
        objective ([`Objective`]): What the run trains for.
        reference (`torch.nn.Module` or [`ReferenceCache`], *optional*): The frozen reference, not placed yet, or its
            cache. Of a learner with an adapter, the weights that are not trained.
        dataset (*optional*): The training data.
        image_column (`str`, *optional*): The column of images.
        first_row (mapping, *optional*): The first row of `dataset`, which alone is described of a stream.

    Returns:
        `dict`: `loss`, `ref_model` and `train_dataset`, the last two by kind of description; `None` for what cannot be
        described: no reference, no data, and rows that are different whenever they are read.
    """
    about: dict[str, str] | None = None
    if isinstance(reference, ReferenceCache):
        known = reference.manifest["reference"]
        about = {"cache": str(known.get("weights") or known.get("commit"))[:16]}
    elif reference is not None:
        about = {"weights": _of_weights(reference)}
    rows = None
    if first_row is not None:
        stream = is_stream(dataset)
        rows = _digest([_of_row(first_row, image_column)]) if stream else _of_rows(dataset, image_column)
    return {
        "loss": objective.loss_kind or objective.name,
        "ref_model": about,
        "train_dataset": None if rows is None else {"rows": rows},
    }


def _of_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    frozen_alone = has_adapter(model)
    for name, weight in sorted(model.named_parameters()):
        if not (frozen_alone and weight.requires_grad):
            values = weight.detach().flatten()
            digest.update(f"{name} {list(weight.shape)}".encode())
            for part in (values[:SAMPLED_VALUES], values[-SAMPLED_VALUES:]):
                digest.update(part.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_rows(dataset: Any, image_column: str | None) -> str | None:
    rows = Rows(dataset, image_column)
    numbers = np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).astype(np.int64)).tolist() if len(rows) else []
    try:
        found, again = ([_of_row(rows[number], image_column) for number in numbers] for _ in range(2))
    except Exception:  # a data set of the user, which may raise anything for a broken row
        return None
    return _digest(found) if found == again else None  # a transform that draws gives other rows each time


def _of_row(row: Mapping[str, Any], image_column: str | None) -> list[Any]:
    return [[name, _of_value(value, name == image_column)] for name, value in sorted(row.items())]


def _of_value(value: Any, is_image: bool = False) -> Any:
    """A value as JSON; of an image file its bytes or its name, without the folder, which may have moved."""
    if is_image and isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if is_image and isinstance(value, str | PathLike):
        return path.basename(value)
    if isinstance(value, bytes | bytearray):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, list | tuple):
        return [_of_value(one) for one in value]
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return value if isinstance(value, PLAIN) else type(value).__name__


def _digest(rows: Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()[:16]


__all__ = ["identify_run"]
