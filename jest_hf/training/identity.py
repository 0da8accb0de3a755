# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run selects with, and from: compared at a resume, where another reference or other rows would go unnoticed,
and between the ranks at the start, where other rows of the same number would.

Samples, since a run starts often: of each tensor of the reference, and of the rows. [`jest_hf.reference`] identifies a
reference and a data set for a cache, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from jest_hf.data.broken import BrokenRow
from jest_hf.data.captions import CAPTION_COLUMNS
from jest_hf.data.row_digest import SAMPLED_ROWS, digest_row, digest_rows, digests_of_rows
from jest_hf.data.streamed_rows import is_stream
from jest_hf.distributed import Ranks, gather_objects
from jest_hf.models import has_adapter
from jest_hf.objectives import Objective
from jest_hf.reference import ReferenceCache
from jest_hf.training.loaders import first_row


logger = logging.get_logger(__name__)

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


def check_same_rows(
    ranks: Ranks, dataset: Any, collator: Any, row: Mapping[str, Any] | None, device: torch.device | str = "cpu"
) -> None:
    """
    Check that all ranks hold the same training data, by the columns that the collator reads. A collective.

    Compared are the number of rows and 16 of them, and the first row of a stream. No image is decoded here: an image
    file is compared by its bytes, or by its name. An image in memory is not compared, and neither are rows that every
    rank reads in another form each time. A row that a rank cannot read is not compared with those of other ranks.

    Args:
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.
        dataset (*optional*): This rank's training data.
        collator: The data collator of the run.
        row (mapping, *optional*): The first row of `dataset`.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Device on which the backend sends tensors.

    Raises:
        ValueError: on all ranks, if two hold different data.
    """
    if ranks.size == 1:
        return
    stream = is_stream(dataset)

    def describe(of_row: Mapping[str, Any]) -> list[str] | None:
        names = _columns_read(collator, of_row)
        if not stream:
            return digests_of_rows(dataset, collator.image_column, names)
        if isinstance(of_row, BrokenRow):
            return [""]
        return [digest_row({name: of_row[name] for name in names if name in of_row}, collator.image_column)]

    digest = None if row is None else describe(row)
    n_rows = None if stream or dataset is None else len(dataset)
    found = gather_objects(ranks, (n_rows, digest), device)
    if len({n for n, _ in found}) > 1:
        raise ValueError(
            f"the ranks hold different training data: {[n for n, _ in found]} rows, in the order of ranks; pass the "
            "same data set as train_dataset on every rank."
        )
    digests = [one for _, one in found]
    if all(one is None for one in digests):
        return
    if None not in digests and all(len({*of_ranks} - {""}) < 2 for of_ranks in zip(*digests, strict=True)):
        return
    if stream and row is not None:
        again = describe(first_row(dataset, collator.image_column, stream))
        if any(gather_objects(ranks, again != digest, device)):
            logger.warning("The stream gives another first row each time, so it is not compared between the ranks.")
            return
    sample = "the first row of the stream" if stream else f"a sample of {SAMPLED_ROWS} rows"
    raise ValueError(
        f"the ranks hold different training data: {sample} has the digests {', '.join(map(_joined, digests))}, in the "
        "order of ranks; pass the same train_dataset in the same order on every rank, and a seed to each shuffle."
    )


def _joined(digests: list[str] | None) -> str:
    """The digests of rows as one short word."""
    return str(None if digests is None else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16])


def _columns_read(collator: Any, row: Mapping[str, Any]) -> list[str]:
    """The columns that a collator reads, and `example_id`; all columns for a collator that does not name them."""
    columns = getattr(collator, "columns", None)
    if columns is None and not hasattr(collator, "caption_column"):
        return sorted(row)
    if columns is None:
        captions = (collator.caption_column, *CAPTION_COLUMNS) if collator.caption_column else CAPTION_COLUMNS
        columns = {"image": collator.image_column, "caption": next((one for one in captions if one in row), None)}
    return sorted({"example_id", *(name for name in columns.values() if name is not None)})


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


__all__ = ["check_same_rows", "identify_run"]
