# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Irreducible losses (RHO-LOSS, arXiv 2206.07137): what a frozen model loses on every example of a data set, once.

A model trained on other data (a hold-out set) has a large loss where an example is noisy or ambiguous, and no training
will reduce it. For examples that stand alone this is one number each: 4 bytes a row, in memory, and in one file:

    losses fp32 [N], valid bool [N], and as metadata a fingerprint: which model, which data, which loss

The data are known by their number of rows, by all of their labels and texts where these can be read without the
images, and by what the model is given of a sample of rows, byte for byte. A run that resumes finds its file; a file of
something else is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PretrainedConfig
from transformers.utils import logging

from jest_hf.data.labelled import LabelledCollator
from jest_hf.data.rows import Rows, share_batches
from jest_hf.distributed import Ranks, ask_first_rank, gather_to_cpu
from jest_hf.evaluation.labelled import EvaluationCollator
from jest_hf.models.labelled import PointwiseReader
from jest_hf.reference.fingerprint import difference
from jest_hf.reference.store import write_atomically
from jest_hf.selection import PointwiseLosses


FORMAT = 1
SAMPLED_ROWS = 256


class IrreducibleLosses:
    """
    A reference whose losses of the training data are known: no model, no forward.

    Args:
        losses (`torch.Tensor`): fp32 `[N]`, on the CPU, in nats, by the number of the row.
        valid (`torch.Tensor`): bool `[N]`: rows that could be read.
        about (`dict`): What they are of; see [`IrreducibleLosses.compute`].
    """

    reads_images = False
    reader: PointwiseReader | None = None
    config: PretrainedConfig | None = None
    width: int | None = None

    def __init__(self, losses: Tensor, valid: Tensor, about: Mapping[str, Any]) -> None:
        self.losses = losses
        self.valid = valid
        self.origin = about

    @classmethod
    @torch.no_grad()
    def compute(
        cls,
        path: str | Path,
        reader: PointwiseReader,
        model: nn.Module,
        rows: Rows,
        collator: LabelledCollator,
        *,
        reference: Mapping[str, Any],
        batch_size: int,
        precision: str = "no",
        replace: bool = False,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        disable_tqdm: bool = False,
        ranks: Ranks | None = None,
    ) -> IrreducibleLosses:
        """
        The losses in the file, or those of every row, which are written to it. A collective: every rank computes its
        share and gets all; the first alone reads and writes. What is interrupted starts over.

        Args:
            path (`str` or `Path`): The file, `.safetensors`.
            reader ([`~objectives.PointwiseReader`]): How the model reads a batch.
            model (`torch.nn.Module`): The frozen model, wrapped or not.
            rows ([`~data.rows.Rows`]): The data.
            collator ([`~data.labelled.LabelledCollator`]): That of the run.
            reference (`Mapping`): Which model it is, see [`identify_reference`].
            batch_size (`int`): Rows in a forward, on one device.
            precision (`str`, *optional*, defaults to `"no"`): The autocast that the caller has switched on.
            replace (`bool`, *optional*, defaults to `False`): Whether to start over where the file is of something
                else, or damaged.
            device (`torch.device`, *optional*, defaults to `"cpu"`): Where the model is.
            num_workers (`int`, *optional*, defaults to `0`): Processes that decode images.
            disable_tqdm (`bool`, *optional*, defaults to `False`): Whether to show no progress.
            ranks ([`Ranks`], *optional*): Who shares the work; `None` is this process alone.

        Raises:
            ValueError: if the file is of something else, or damaged, and `replace` is False, or if a loss is NaN or
                infinite.
            OSError: if the file cannot be written.
            RuntimeError: on the other ranks, where the first raises one of these.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        path, ranks = Path(path), ranks or Ranks()

        def look() -> tuple[dict[str, Any], IrreducibleLosses | None]:
            about = {
                "format": FORMAT,
                "reference": dict(reference),
                "data": _describe(rows, collator, reader),
                "loss": {"causal": reader.causal, "label_smoothing": reader.label_smoothing, "precision": precision},
            }
            return about, cls._read(path, about, replace)

        about, found = ask_first_rank(ranks, look, device)
        if found is not None:
            return found

        model.eval()
        loader = DataLoader(
            rows,
            batch_sampler=share_batches(len(rows), batch_size, ranks),
            collate_fn=EvaluationCollator(collator),
            num_workers=num_workers,
            generator=torch.Generator(),  # it draws a seed for its workers: not from the global random state
        )
        losses, valid = [], []
        for batch in logging.tqdm(
            loader, desc="Irreducible losses", unit="batch", disable=disable_tqdm or ranks.rank > 0
        ):
            n_rows = int(batch.pop("n_rows"))
            batch = {name: value.to(device) for name, value in batch.items()}
            losses.append(reader.score(model, batch, batch_size).losses[:n_rows].cpu())
            valid.append(batch["valid"][:n_rows].cpu())
        whole = cls(
            gather_to_cpu(ranks, torch.cat(losses), device), gather_to_cpu(ranks, torch.cat(valid), device), about
        )
        broken = (~whole.losses.isfinite()).nonzero().flatten().tolist()
        if broken:
            raise ValueError(
                f"the reference's losses of {len(broken)} rows are NaN or infinite, the first of them row "
                f"{broken[0]}; see that the reference is sound, or compute in fp32."
            )
        ask_first_rank(ranks, lambda: whole._write(path), device)
        return whole

    @property
    def name(self) -> str | None:
        """Hub id of the reference."""
        return self.origin["reference"].get("repo")

    @property
    def commit(self) -> str | None:
        """Commit of a reference from the Hub."""
        return self.origin["reference"].get("commit")

    @property
    def n_readable(self) -> int:
        """Rows that could be read."""
        return int(self.valid.sum())

    def readable(self, batch: Mapping[str, Tensor]) -> Tensor:
        """
        Which examples of a super-batch can be selected, bool `[B]`: those that can be read now and could be when the
        losses were computed.
        """
        valid = batch["valid"]
        return valid & self.valid[self._rows(batch)].to(valid.device)

    def score(self, learner: nn.Module, batch: Mapping[str, Tensor], batch_size: int) -> PointwiseLosses:
        """
        The reference's losses of a super-batch, on its device; no model is asked.

        Raises:
            ValueError: for an example that is marked as readable and could not be read then.
        """
        rows = self._rows(batch)
        lost = batch["valid"].cpu() & ~self.valid[rows]
        if lost.any():
            raise ValueError(
                f"row {int(rows[lost][0])} could not be read when the irreducible losses were computed, and can be "
                "read now; compute them anew, or leave such rows out of the selection with IrreducibleLosses.readable."
            )
        return PointwiseLosses(self.losses[rows].to(batch["example_id"].device))

    def about(self) -> dict[str, Any]:
        """Return what a model card says about the reference, by the names of `RunSummary`."""
        return {"reference": self.name, "reference_revision": self.commit}

    def _rows(self, batch: Mapping[str, Tensor]) -> Tensor:
        rows = batch["example_id"].cpu()
        strange = (rows < 0) | (rows >= len(self.losses))
        if strange.any():
            raise ValueError(
                f"there are irreducible losses of rows 0 to {len(self.losses) - 1}, and none of row "
                f"{int(rows[strange][0])}; train on the data they were computed of."
            )
        return rows

    @classmethod
    def _read(cls, path: Path, about: Mapping[str, Any], replace: bool) -> IrreducibleLosses | None:
        """What the file holds; `None` if there is none, or one that may be replaced."""
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("losses", "valid")}
                existing = json.loads(file.metadata()["about"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            found, existing = f"it is damaged ({error})", {}
        else:
            wanted = {name: value for name, value in about.items() if name != "format"}
            found = difference(existing, wanted) if existing.get("format") == FORMAT else "its format is another"
        if found is None:
            return cls(**tensors, about=existing)
        if replace:
            return None
        raise ValueError(f"the irreducible losses in {path} are not those of this run: {found}; delete the file.")

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"losses": self.losses, "valid": self.valid}
        write_atomically(path, save(tensors, metadata={"about": json.dumps(self.origin)}))

    def __repr__(self) -> str:
        return f"IrreducibleLosses(n_rows={len(self.losses)}, name={self.name!r})"


def _describe(rows: Rows, collator: LabelledCollator, reader: PointwiseReader) -> dict[str, Any]:
    """Which data these are, and how the model reads them."""
    if len(rows) == 0:
        raise ValueError("the data set has no rows; pass one that has at least one.")
    known: dict[str, Any] = {"n_rows": len(rows)}
    if isinstance(rows.dataset, datasets.Dataset) and rows.dataset.format["type"] != "custom":
        known["column"] = {name: _hash_column(rows.dataset, name) for name in collator.small_columns}
    sample = np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).round().astype(np.int64)).tolist()
    known["row"] = {str(index): _hash_example(collator([rows[index]]), reader) for index in sample}
    return known


def _hash_column(dataset: datasets.Dataset, name: str) -> str:
    digest = hashlib.sha256()
    for batch in dataset.select_columns([name]).iter(batch_size=1000):
        digest.update(json.dumps(batch[name], default=repr).encode())
    return digest.hexdigest()


def _hash_example(batch: Mapping[str, Tensor], reader: PointwiseReader) -> str:
    """Of what the model is given of a row, and of its labels."""
    given = {**reader.inputs(batch), "labels": batch["labels"], "valid": batch["valid"]}
    digest = hashlib.sha256()
    for name, value in sorted(given.items()):
        digest.update(name.encode())
        digest.update(value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()[:16]


__all__ = ["IrreducibleLosses"]
