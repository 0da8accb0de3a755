# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run selects with, and from: compared at a resume, where another reference or other rows would go unnoticed.

Samples, since a run starts often: of each tensor of the reference, and of the rows. [`jest_hf.reference`] identifies a
reference and a data set for a cache, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from jest_hf.data.row_digest import digest_row, digest_rows
from jest_hf.data.stream import is_stream
from jest_hf.models import has_adapter
from jest_hf.objectives import Objective
from jest_hf.reference import ReferenceCache


SAMPLED_VALUES = 64  # of each tensor, at its beginning and at its end


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
        rows = digest_row(first_row, image_column) if stream else digest_rows(dataset, image_column)
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


__all__ = ["identify_run"]
