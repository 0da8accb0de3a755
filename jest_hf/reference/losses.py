# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Irreducible losses (RHO-LOSS, arXiv 2206.07137): the loss of a frozen model on each example of a data set.

A model trained on other data (a hold-out set) has a large loss on noisy or ambiguous examples, which no training will
reduce. The loss of an example is one number: 4 bytes a row, in memory and in one file:

    losses fp32 [N], valid bool [N], and in the metadata a description of the model, the data and the loss

The data are identified by their number of rows, by all labels and texts if these can be read without the images, and
by the model's inputs for a sample of rows, byte for byte. A resumed run reads its file; a file of another model or
other data is refused, and so is one whose losses are not those that were written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
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

from jest_hf.batch import CACHED_PREFIX, as_bits, from_bits
from jest_hf.data.labelled import LabelledCollator
from jest_hf.data.rows import Rows, share_batches
from jest_hf.distributed import Ranks, ask_first_rank, gather_to_cpu
from jest_hf.evaluation.labelled import EvaluationCollator
from jest_hf.models.labelled import PointwiseReader
from jest_hf.reference.fingerprint import difference
from jest_hf.reference.shards import hash_tensors
from jest_hf.reference.store import write_atomically
from jest_hf.selection import PointwiseLosses


FORMAT = 2  # 1 had no hash of the losses
SAMPLED_ROWS = 256
_LOSSES = CACHED_PREFIX + "losses"


class IrreducibleLosses:
    """A reference whose losses on the training data are known: no model, no forward.

    Args:
        losses (`torch.Tensor`): The loss of each row in nats, fp32 `[N]`, on the CPU.
        valid (`torch.Tensor`): Whether each row could be read, bool `[N]`.
        about (`dict`): Description of the model, the data and the loss; [`IrreducibleLosses.compute`] makes it.

    Example:

    ```python
    >>> import torch
    >>> from jest_hf.reference.losses import IrreducibleLosses
    >>> valid = torch.tensor([True, True, False])
    >>> known = IrreducibleLosses(torch.tensor([0.5, 2.0, 0.0]), valid, {"reference": {}})
    >>> batch = {"example_id": torch.tensor([1, 0]), "valid": torch.tensor([True, True])}
    >>> known.score(torch.nn.Identity(), batch, batch_size=2).losses
    tensor([2.0000, 0.5000])

    ```
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
        """Read the losses from a file, or compute them for every row and write the file. A collective: every rank
        computes a share of the losses and returns all of them. Only the first rank reads and writes the file. An
        interrupted computation starts over.

        Args:
            path (`str` or `Path`): The file, `.safetensors`.
            reader ([`~jest_hf.objectives.PointwiseReader`]): How the model reads a batch.
            model (`torch.nn.Module`): The frozen model, wrapped or not.
            rows ([`~jest_hf.data.rows.Rows`]): The data.
            collator ([`~jest_hf.data.labelled.LabelledCollator`]): The collator of the run.
            reference (`Mapping`): Identity of the model, from [`~jest_hf.reference.identify_reference`].
            batch_size (`int`): Rows in a forward, on one device.
            precision (`str`, *optional*, defaults to `"no"`): The autocast that the caller has switched on: `"no"`,
                `"bf16"` or `"fp16"`.
            replace (`bool`, *optional*, defaults to `False`): Whether to start over if the file is damaged, or of
                another model or other data.
            device (`torch.device`, *optional*, defaults to `"cpu"`): Device of the model.
            num_workers (`int`, *optional*, defaults to `0`): Processes that decode images.
            disable_tqdm (`bool`, *optional*, defaults to `False`): Whether to hide the progress bar.
            ranks ([`~jest_hf.distributed.Ranks`], *optional*): The ranks that share the work. Default: this process
                alone.

        Raises:
            ValueError: if the file is damaged, or of another model or other data, and `replace` is False; and if a
                loss is NaN or infinite.
            OSError: if the file cannot be written.
            RuntimeError: on the other ranks, if the first rank raises one of these while it reads or writes.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        path, ranks = Path(path), ranks or Ranks()

        def read() -> tuple[dict[str, Any], IrreducibleLosses | None]:
            about = {
                "format": FORMAT,
                "reference": dict(reference),
                "data": _describe(rows, collator, reader),
                "loss": {"causal": reader.causal, "label_smoothing": reader.label_smoothing, "precision": precision},
            }
            return about, cls._read(path, about, replace)

        about, found = ask_first_rank(ranks, read, device)
        if found is not None:
            return found

        model.eval()
        batches: Iterable[Any] = share_batches(len(rows), batch_size, ranks)  # ranges, where torch names lists
        loader = DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=EvaluationCollator(collator),
            num_workers=num_workers,
            generator=torch.Generator(),  # the seed of the workers: not drawn from the global random state
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
                f"{broken[0]}; check the weights of ref_model, or use fp32 instead of bf16=True or fp16=True."
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
        """Return which examples of a super-batch can be selected, bool `[B]`: those that could be read both now and
        when the losses were computed.
        """
        valid = batch["valid"]
        if _LOSSES in batch:  # `fetch` has compared them
            return valid
        return valid & self.valid[self._rows(batch)].to(valid.device)

    def fetch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a super-batch, and which examples can be selected.

        Args:
            batch (mapping of `str` to `torch.Tensor`): As in [`~IrreducibleLosses.score`], on the CPU.

        Returns:
            `dict[str, torch.Tensor]`: `cached_losses`, the bits of float32 losses as int32 `[B]`, and `valid` bool
            `[B]`, as [`~IrreducibleLosses.readable`] gives it.

        Raises:
            ValueError: for a row without a loss.
        """
        return {_LOSSES: as_bits(self.losses[self._rows(batch)]), "valid": self.readable(batch)}

    def score(self, learner: nn.Module, batch: Mapping[str, Tensor], batch_size: int) -> PointwiseLosses:
        """Return the losses of a super-batch, fp32 `[B]`, on the device of its ids.

        Args:
            learner (`torch.nn.Module`): Unused.
            batch (mapping of `str` to `torch.Tensor`): `example_id` int64 `[B]` and `valid` bool `[B]`.
            batch_size (`int`): Unused.

        Raises:
            ValueError: for an example that is `valid` and could not be read when the losses were computed.
        """
        if _LOSSES in batch:
            return PointwiseLosses(from_bits(batch[_LOSSES]))
        rows = self._rows(batch)
        lost = batch["valid"].cpu() & ~self.valid[rows]
        if lost.any():
            raise ValueError(
                f"row {int(rows[lost][0])} could not be read when the irreducible losses were computed, and can be "
                "read now; delete the file of losses to compute them again, or exclude such rows from the selection "
                "with IrreducibleLosses.readable."
            )
        return PointwiseLosses(self.losses[rows].to(batch["example_id"].device))

    def comparing(self, collator: Any) -> Any:
        """Return `collator`: the file has no digests of rows."""
        return collator

    def caption_counts(self, ids: Tensor) -> None:
        """Return `None`: labelled rows have no captions."""

    def about(self) -> dict[str, Any]:
        """Return the fields of [`~jest_hf.report.summary.RunSummary`] that describe the reference in a model card."""
        return {"reference": self.name, "reference_revision": self.commit}

    def _rows(self, batch: Mapping[str, Tensor]) -> Tensor:
        rows = batch["example_id"].cpu()
        strange = (rows < 0) | (rows >= len(self.losses))
        if strange.any():
            raise ValueError(
                f"there are irreducible losses of rows 0 to {len(self.losses) - 1}, and none of row "
                f"{int(rows[strange][0])}; train on the data that the losses were computed on."
            )
        return rows

    @classmethod
    def _read(cls, path: Path, about: Mapping[str, Any], replace: bool) -> IrreducibleLosses | None:
        """Read the file; return `None` if there is no file, or one that may be replaced."""
        if not path.exists():
            return None
        found: str | None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("losses", "valid")}
                existing = json.loads(file.metadata()["about"])
            fault = _fault(tensors, existing)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            found, existing = f"it is damaged ({error})", {}
        else:
            wanted = {name: value for name, value in about.items() if name != "format"}
            found = fault or difference(existing, wanted)
        if found is None:
            return cls(**tensors, about=existing)
        if replace:
            return None
        raise ValueError(
            f"the irreducible losses in {path} do not match this run: {found}; delete the file to compute new ones."
        )

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"losses": self.losses, "valid": self.valid}
        about = {**self.origin, "contents": hash_tensors(tensors)}
        write_atomically(path, save(tensors, metadata={"about": json.dumps(about)}))

    def __repr__(self) -> str:
        return f"IrreducibleLosses(n_rows={len(self.losses)}, name={self.name!r})"


def _fault(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a file, as a part of a sentence; `None` if nothing is."""
    if about.get("format") != FORMAT:
        return "its format is unknown"
    if about.get("contents") != hash_tensors(tensors):
        return "it is damaged (its losses do not have the hash in it)"
    losses, valid = tensors["losses"], tensors["valid"]
    if (losses.dtype, valid.dtype) != (torch.float32, torch.bool) or not losses.shape == valid.shape == (
        about["data"]["n_rows"],
    ):
        return f"it is damaged (its losses are {losses.dtype} {list(losses.shape)})"
    return None if losses.isfinite().all() else "it has losses that are NaN or infinite"


def _describe(rows: Rows, collator: LabelledCollator, reader: PointwiseReader) -> dict[str, Any]:
    """Identify the data, as the model reads them."""
    if len(rows) == 0:
        raise ValueError("the data set has no rows; pass a data set with at least one row.")
    known: dict[str, Any] = {"n_rows": len(rows)}
    if isinstance(rows.dataset, datasets.Dataset) and rows.dataset.format["type"] != "custom":
        known["column"] = {name: hash_column(rows.dataset, name) for name in collator.small_columns}
    sample = np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).round().astype(np.int64)).tolist()
    known["row"] = {str(index): _hash_example(collator([rows[index]]), reader) for index in sample}
    return known


def hash_column(dataset: datasets.Dataset, name: str) -> str:
    """Return the sha256 of a column, which is read in batches."""
    digest = hashlib.sha256()
    for batch in dataset.select_columns([name]).iter(batch_size=1000):
        digest.update(json.dumps(batch[name], default=repr).encode())
    return digest.hexdigest()


def _hash_example(batch: Mapping[str, Tensor], reader: PointwiseReader) -> str:
    """Return a hash of the model's inputs for one row, and of the row's labels."""
    given = {**reader.inputs(batch), "labels": batch["labels"], "valid": batch["valid"]}
    digest = hashlib.sha256()
    for name, value in sorted(given.items()):
        digest.update(name.encode())
        digest.update(value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()[:16]


__all__ = ["IrreducibleLosses", "hash_column"]
