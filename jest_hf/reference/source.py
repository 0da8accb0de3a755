# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The reference of a run, as a training step sees it: a model, or a cache of what the model has computed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import datasets
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.rows import Rows, undecoded
from jest_hf.data.stream import is_stream
from jest_hf.hub.pull import Snapshot
from jest_hf.models import as_reference, base_model
from jest_hf.models.reader import Reader
from jest_hf.reference.cache import write_cache
from jest_hf.reference.fingerprint import describe_data, describe_row, own_key
from jest_hf.reference.store import ReferenceCache
from jest_hf.selection import ContrastiveEmbeddings, Scored


class ReferenceSource(Protocol):
    """
    Where the reference's scores come from: a model, a cache of embeddings or losses, or a model that is trained.

    Attributes:
        name (`str`, *optional*): Hub id or path of the reference; `None` for a model that this run trains itself.
        commit (`str`, *optional*): Its commit on the Hub.
        reads_images (`bool`): Whether scoring needs the images and texts of a super-batch, and not only its ids.
        reader ([`~jest_hf.models.Reader`], *optional*): How the model reads a super-batch, if one is loaded.
        config ([`~transformers.PretrainedConfig`], *optional*): Configuration of that model.
        width (`int`, *optional*): Width of cached embeddings; `None` where a configuration tells it, or for losses.
    """

    reads_images: bool

    @property
    def name(self) -> str | None: ...

    @property
    def commit(self) -> str | None: ...

    @property
    def reader(self) -> Reader | None: ...

    @property
    def config(self) -> PretrainedConfig | None: ...

    @property
    def width(self) -> int | None: ...

    def readable(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which examples of a super-batch the reference can score, bool `[B]`."""

    def score(self, learner: nn.Module, batch: Mapping[str, Tensor], batch_size: int) -> Scored:
        """
        Return the reference's scores of a super-batch, on its device.

        Args:
            learner (`torch.nn.Module`): The learner as the step sees it, wrapped by its engine.
            batch (mapping of `str` to `torch.Tensor`): The super-batch.
            batch_size (`int`): Rows in a forward.
        """

    def about(self) -> dict[str, Any]:
        """Return what a model card says about the reference, by the names of `RunSummary`."""


class Reference:
    """
    A reference whose model is run on each super-batch.

    Args:
        view ([`~jest_hf.models.DualEncoder`]): How the reference reads a super-batch.
        model (`torch.nn.Module`): A frozen model of its own; or, with `shared`, the learner (a `peft.PeftModel`).
        shared (`bool`): Whether the reference is the learner's backbone (`reference="adapter"`). Its forward then goes
            through the wrapped learner, in which engines gather their parameters.
        adapter ([`~jest_hf.hub.pull.Snapshot`], *optional*): Where the adapter came from that makes a shared model the
            reference; `None` for the backbone alone.
        config ([`~transformers.PretrainedConfig`], *optional*): Default: that of `model`, unless an engine wraps it.
    """

    reads_images = True
    width: int | None = None

    def __init__(
        self,
        view: Reader,
        model: nn.Module,
        shared: bool = False,
        adapter: Snapshot | None = None,
        config: PretrainedConfig | None = None,
    ) -> None:
        self.view = view
        self.model = model
        self.shared = shared
        self.adapter = adapter
        self.config = base_model(model).config if config is None else config

    @property
    def reader(self) -> Reader:
        """How the reference reads a super-batch."""
        return self.view

    @property
    def name(self) -> str | None:
        """Hub id or path that the model, or its adapter, came from."""
        if self.adapter is not None:
            return self.adapter.name
        return self.config._name_or_path or None

    @property
    def commit(self) -> str | None:
        """Commit of a model or an adapter from the Hub."""
        if self.adapter is not None:
            return self.adapter.commit
        return getattr(self.config, "_commit_hash", None)  # set by from_pretrained alone

    def readable(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which examples of a super-batch the reference can score, bool `[B]`: all that can be read."""
        return batch["valid"]

    def score(self, learner: nn.Module, batch: Mapping[str, Tensor], batch_size: int) -> Scored:
        """Return the reference's scores of a super-batch, on its device; `learner` is the wrapped one of the step."""
        with self.switched_on():
            return self.view.score(learner if self.shared else self.model, batch, batch_size)

    def switched_on(self) -> AbstractContextManager[None]:
        """Within, the forward of `model` is the reference's, also where it is the learner's otherwise."""
        return as_reference(self.model) if self.shared else nullcontext()

    def about(self) -> dict[str, Any]:
        """Return what a model card says about the reference, by the names of `RunSummary`."""
        return {"reference": self.name, "reference_revision": self.commit, "reference_is_backbone": self.shared}

    def write_cache(
        self,
        folder: str | Path,
        config: PretrainedConfig,
        rows: Rows,
        collator: JESTDataCollator,
        *,
        reference: Mapping[str, Any],
        **options: Any,
    ) -> CachedReference:
        """
        Embed the rows once, and read the embeddings from the disk from then on; arguments as those of [`write_cache`].
        `reference` is completed by the repository and the commit that the reference came from.
        """
        if self.commit is not None:
            reference = {**reference, "repo": self.name, "commit": self.commit}
        options["reference"] = reference
        with self.switched_on():
            return CachedReference(write_cache(folder, self.view, self.model, config, rows, collator, **options))


class CachedReference:
    """
    A reference whose embeddings of the training data are known: no model, no forward.

    Args:
        cache ([`ReferenceCache`]): Its embeddings.
        by_key (`bool`): Whether a super-batch's `example_id` is a row's own name (of a stream) and not its number.
    """

    reads_images = False
    reader: Reader | None = None
    config: PretrainedConfig | None = None

    def __init__(self, cache: ReferenceCache, by_key: bool = False) -> None:
        self.cache = cache
        self.by_key = by_key

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.cache.width

    @classmethod
    def of(cls, cache: ReferenceCache, dataset: Any, collator: JESTDataCollator) -> CachedReference:
        """
        For training on `dataset`, once it is known to be what was cached: by [`describe_data`], and a stream as far as
        its first row shows.

        Raises:
            ValueError: if it is something else, or a stream whose rows have no integer `example_id` of their own.
        """
        if not is_stream(dataset):
            cache.check(data=describe_data(Rows(dataset, collator.image_column), collator))
            return cls(cache)
        if isinstance(dataset, datasets.IterableDataset):
            dataset = undecoded(dataset.with_format(None))
        row = next(iter(dataset), {})
        key = own_key(row)
        if key is None:
            raise ValueError(
                f"the reference cache in {cache.folder} is looked up by key, and the stream's rows have no integer "
                "column example_id; add one (the row's number, where the cached data have no such column), or train "
                "on the data set itself."
            )
        number = int(cache.rows_of(torch.tensor([key]))[0])
        cache.check(data=describe_row(row, number, collator))
        return cls(cache, by_key=True)

    @property
    def name(self) -> str | None:
        """Hub id of the reference that was cached."""
        return self.cache.manifest["reference"].get("repo")

    @property
    def commit(self) -> str | None:
        """Commit of a reference from the Hub."""
        return self.cache.manifest["reference"].get("commit")

    def readable(self, batch: Mapping[str, Tensor]) -> Tensor:
        """
        Which examples of a super-batch can be selected, bool `[B]`: those that can be read now and could be when they
        were cached.
        """
        valid = batch["valid"]
        return valid & self.cache.readable(self._rows(batch)).to(valid.device)

    def score(self, learner: nn.Module, batch: Mapping[str, Tensor], batch_size: int) -> ContrastiveEmbeddings:
        """
        The reference's embeddings of a super-batch, fp32, on its device; only the first few keys of it are used.

        Of rows with several captions it needs to know which one was drawn: `caption_number`, int64 `[B]`.

        Raises:
            ValueError: for an example that is marked as readable and could not be read when it was cached.
        """
        ids, rows = batch["example_id"], self._rows(batch)
        lost = batch["valid"].cpu() & ~self.cache.readable(rows)
        if lost.any():
            raise ValueError(
                f"row {int(rows[lost][0])} could not be read when the reference was cached, and can be read now; make "
                "the cache anew, or leave such rows out of the selection with CachedReference.readable."
            )
        captions = batch["caption_number"].cpu() if "caption_number" in batch else None
        return self.cache.take(rows, captions).to(ids.device)

    def about(self) -> dict[str, Any]:
        """Return what a model card says about the reference, by the names of `RunSummary`."""
        weights = self.cache.manifest["reference"].get("weights")
        return {
            "reference": self.name,
            "reference_revision": self.commit,
            "reference_weights": weights,
            "reference_is_backbone": False,
        }

    def _rows(self, batch: Mapping[str, Tensor]) -> Tensor:
        ids = batch["example_id"].cpu()
        return self.cache.rows_of(ids) if self.by_key else ids


__all__ = ["CachedReference", "Reference", "ReferenceSource"]
