# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The reference of a run, as a training step uses it: a model, or a cache of what the model computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import datasets
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from jest_hf.batch import CACHED_PREFIX, as_bits, from_bits
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.row_digest import content_digests, is_fixed
from jest_hf.data.rows import Rows
from jest_hf.data.streamed_rows import first_streamed, is_stream
from jest_hf.hub.pull import Snapshot
from jest_hf.models import as_reference, base_model
from jest_hf.models.reader import Reader
from jest_hf.reference.cache import write_cache
from jest_hf.reference.compared import ComparingCollator, described, differing
from jest_hf.reference.fingerprint import describe_data, describe_row, own_key
from jest_hf.reference.store import ReferenceCache
from jest_hf.selection import ContrastiveEmbeddings, Scored


_IMAGE, _TEXT = CACHED_PREFIX + "image", CACHED_PREFIX + "text"


class ReferenceSource(Protocol):
    """Where the reference's scores come from: a frozen model, a cache of embeddings or losses, or a model that the run
    trains.

    Attributes:
        name (`str`, *optional*): Hub id or path of the reference; `None` for a model that the run trains.
        commit (`str`, *optional*): Commit of a reference from the Hub.
        reads_images (`bool`): Whether scoring needs the images and texts of a super-batch, or its ids alone.
        reader ([`~jest_hf.models.reader.Reader`], *optional*): How the model reads a super-batch; `None` without one.
        config ([`~transformers.PretrainedConfig`], *optional*): Configuration of the model; `None` without one.
        width (`int`, *optional*): Width D of cached embeddings; `None` for losses, and where `config` has the width.
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
        """Score a super-batch with the reference, on the device of the super-batch.

        Args:
            learner (`torch.nn.Module`): The learner, as its engine wraps it.
            batch (mapping of `str` to `torch.Tensor`): The super-batch.
            batch_size (`int`): Rows in a forward.
        """

    def fetch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what a loader's worker adds to a super-batch, on the CPU, so that `readable` and `score` of this
        super-batch read nothing; empty for a model.
        """

    def comparing(self, collator: Any) -> Any:
        """Return a collator that compares the rows with those that were cached; `collator` itself where it cannot."""

    def caption_counts(self, ids: Tensor) -> Tensor | None:
        """Return the number of usable captions of rows (int64 `[n]`), where a cache knows it."""

    def about(self) -> dict[str, Any]:
        """Return the fields of [`~jest_hf.report.summary.RunSummary`] that describe the reference in a model card."""


class Reference:
    """A reference whose model runs on each super-batch.

    Args:
        view ([`~jest_hf.models.reader.Reader`]): How the reference reads a super-batch.
        model (`torch.nn.Module`): The frozen reference; or, with `shared`, the learner (a `peft.PeftModel`).
        shared (`bool`, *optional*, defaults to `False`): Whether the reference is the learner's backbone
            (`reference="adapter"`). The forward then goes through the wrapped learner, in which engines gather its
            parameters.
        adapter ([`~jest_hf.hub.pull.Snapshot`], *optional*): With `shared`, the files of the reference's adapter;
            `None` if the reference is the backbone alone.
        config ([`~transformers.PretrainedConfig`], *optional*): Configuration of the reference. Default: that of
            `model`. Needed if an engine wraps `model`.
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
        underneath: Any = base_model(model)
        self.config: PretrainedConfig = underneath.config if config is None else config

    @property
    def reader(self) -> Reader:
        """How the reference reads a super-batch."""
        return self.view

    @property
    def name(self) -> str | None:
        """Hub id or path of the model, or of its adapter."""
        if self.adapter is not None:
            return self.adapter.name
        return self.config._name_or_path or None

    @property
    def commit(self) -> str | None:
        """Commit of a model or an adapter from the Hub."""
        if self.adapter is not None:
            return self.adapter.commit
        return getattr(self.config, "_commit_hash", None)  # only from_pretrained sets it

    def readable(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which examples of a super-batch the reference can score, bool `[B]`: all that could be read."""
        return batch["valid"]

    def score(self, learner: nn.Module, batch: Mapping[str, Tensor], batch_size: int) -> Scored:
        """Score a super-batch, on its device; `learner` is the learner as its engine wraps it."""
        with self.switched_on():
            return self.view.score(learner if self.shared else self.model, batch, batch_size)

    def switched_on(self) -> AbstractContextManager[None]:
        """Return a context in which the forward of `model` is the reference's, also if `model` is the learner."""
        return as_reference(self.model) if self.shared else nullcontext()

    def fetch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an empty dict: the model scores on the device."""
        return {}

    def comparing(self, collator: Any) -> Any:
        """Return `collator`: nothing is cached."""
        return collator

    def caption_counts(self, ids: Tensor) -> None:
        """Return `None`: the rows tell their captions when they are read."""

    def about(self) -> dict[str, Any]:
        """Return the fields of [`~jest_hf.report.summary.RunSummary`] that describe the reference in a model card."""
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
        """Embed the rows once, and return a reference that reads the embeddings from the disk. A collective.

        The arguments are those of [`write_cache`]. `reference` is completed by the repository and the commit of a
        reference from the Hub.
        """
        if self.commit is not None:
            reference = {**reference, "repo": self.name, "commit": self.commit}
        options["reference"] = reference
        with self.switched_on():
            cache = write_cache(folder, self.view, self.model, config, rows, collator, **options)
        return CachedReference(cache, compares=is_fixed(rows))


class CachedReference:
    """A reference whose embeddings of the training data are read from a cache: no model, no forward.

    Args:
        cache ([`ReferenceCache`]): The embeddings.
        by_key (`bool`, *optional*, defaults to `False`): Whether the `example_id` of a super-batch is the value of the
            data's own column `example_id`, as in a stream, and not the number of the row.
        compares (`bool`, *optional*, defaults to `True`): Whether a run compares the rows that it reads with the
            cache's digests of them: not if a random transform gives other rows each time.

    Attributes:
        different (`torch.Tensor`): Number of rows that were skipped since they differ from the cache, as the processes
            of this rank have counted them; int64.
    """

    reads_images = False
    reader: Reader | None = None
    config: PretrainedConfig | None = None

    def __init__(self, cache: ReferenceCache, by_key: bool = False, compares: bool = True) -> None:
        self.cache = cache
        self.by_key = by_key
        self.compares = compares and cache.has_digests
        self.different = torch.zeros((), dtype=torch.int64)
        self.different.share_memory_()

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.cache.width

    @classmethod
    def of(cls, cache: ReferenceCache, dataset: Any, collator: JESTDataCollator) -> CachedReference:
        """Return the reference for training on `dataset`, after checking that the cache was made of this data set (by
        [`describe_data`]; of a stream, its first readable row is checked here, and every other row when it is read).

        Args:
            cache ([`ReferenceCache`]): The embeddings.
            dataset (`datasets.Dataset` or `datasets.IterableDataset`): The training data.
            collator ([`JESTDataCollator`]): The collator of the run, which names the columns.

        Raises:
            ValueError: for other data, for a stream whose rows have no integer column `example_id`, and for a stream
                with a cache of an earlier version, which has no digests of its rows, or whose first 256 rows cannot be
                read.
        """
        if not is_stream(dataset):
            cache.check(data=describe_data(Rows(dataset, collator.image_column), collator))
            return cls(cache)
        row = first_streamed(dataset, collator.image_column)
        key = own_key(row)
        if key is None:
            raise ValueError(
                "train_dataset is a stream without an integer column example_id, by which rows are found in the "
                f"reference cache in {cache.folder}; add that column (the number of the row, if the cached data have "
                "no such column), or train on the data set itself."
            )
        if not cache.has_digests:
            raise ValueError(
                f"the reference cache in {cache.folder} is of an earlier version, which kept no digests of rows to "
                "compare a stream with; make a new one with `jest-hf cache-reference`, or train on the data set."
            )
        number = cache.rows_of(torch.tensor([key]))
        try:
            cache.check(data=describe_row(row, int(number), collator))
            found = content_digests([row], collator.image_column, collator.caption_column)
            if (wrong := differing(found, cache.digests(number))).any():
                raise ValueError(
                    f"the reference cache in {cache.folder} does not match this run: the row with example_id={key} "
                    f"has {described(wrong[0])}; train on the data of the cache, or make a new cache with `jest-hf "
                    "cache-reference`."
                )
        except ValueError as error:
            if isinstance(dataset, datasets.IterableDataset):
                column = collator.image_column
                error.args = (
                    f"{error} If the data are the same, a function of map or filter may have decoded the images: "
                    f"before it, call stream.cast_column({column!r}, datasets.Image(decode=False)).",
                )
            raise
        return cls(cache, by_key=True)

    @property
    def name(self) -> str | None:
        """Hub id of the cached reference."""
        return self.cache.manifest["reference"].get("repo")

    @property
    def commit(self) -> str | None:
        """Commit of a reference from the Hub."""
        return self.cache.manifest["reference"].get("commit")

    def readable(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return which examples of a super-batch can be selected, bool `[B]`: those that could be read both now and
        when the cache was made.
        """
        valid = batch["valid"]
        if _IMAGE in batch:  # `fetch` has compared them
            return valid
        return valid & self.cache.readable(self._rows(batch)).to(valid.device)

    def fetch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the cached embeddings of a super-batch, as they are stored, and which examples can be selected.

        Args:
            batch (mapping of `str` to `torch.Tensor`): As in [`~CachedReference.score`], on the CPU.

        Returns:
            `dict[str, torch.Tensor]`: `cached_image` and `cached_text`, the bits of float16 or float32 embeddings as
            int16 or int32 `[B, D]`, and `valid` bool `[B]`, as [`~CachedReference.readable`] gives it.

        Raises:
            ValueError: for a row that the cache does not have, and for a damaged shard.
        """
        rows, valid = self._rows(batch), self.readable(batch)
        image, text = self.cache.stored(rows, self._captions(batch, valid))
        return {_IMAGE: as_bits(image), _TEXT: as_bits(text), "valid": valid}

    def comparing(self, collator: Any) -> Any:
        """Return a collator that skips rows which are not those of the cache ([`ComparingCollator`])."""
        return ComparingCollator(collator, self.cache, self._rows, self.different) if self.compares else collator

    def score(self, learner: nn.Module, batch: Mapping[str, Tensor], batch_size: int) -> ContrastiveEmbeddings:
        """Return the embeddings of a super-batch, fp32, on the device of its ids; `learner` and `batch_size` are
        unused.

        Args:
            learner (`torch.nn.Module`): Unused.
            batch (mapping of `str` to `torch.Tensor`): `example_id` int64 `[B]`, `valid` bool `[B]` and, for rows with
                several captions, `caption_number` int64 `[B]`: which caption was drawn.
            batch_size (`int`): Unused.

        Raises:
            ValueError: for an example that is `valid` and could not be read when the cache was made.
        """
        if _IMAGE in batch:
            image, text = from_bits(batch[_IMAGE]), from_bits(batch[_TEXT])
            return ContrastiveEmbeddings(image, text, self.cache.logit_scale, self.cache.logit_bias)
        ids, rows = batch["example_id"], self._rows(batch)
        lost = batch["valid"].cpu() & ~self.cache.readable(rows)
        if lost.any():
            raise ValueError(
                f"row {int(rows[lost][0])} could not be read when the reference was cached, and can be read now; make "
                "a new cache, or exclude such rows from the selection with CachedReference.readable."
            )
        return self.cache.take(rows, self._captions(batch, batch["valid"])).to(ids.device)

    def caption_counts(self, ids: Tensor) -> Tensor:
        """Return the number of usable captions of rows (int64 `[n]`, as in `example_id`), int64 `[n]`."""
        return self.cache.caption_counts(self._rows({"example_id": ids}))

    def about(self) -> dict[str, Any]:
        """Return the fields of [`~jest_hf.report.summary.RunSummary`] that describe the reference in a model card."""
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

    def _captions(self, batch: Mapping[str, Tensor], valid: Tensor) -> Tensor | None:
        """Which caption of each row was drawn; of a row that cannot be selected, the first."""
        if "caption_number" not in batch:
            return None
        return batch["caption_number"].where(valid, 0).cpu()


class FetchingCollator:
    """A collator whose super-batches hold the cached scores of their rows.

    The loader's workers call it, so that a training step waits for no disk. The loader pins what it makes and copies
    it to the device like the images.

    Args:
        collator (`Callable`): Makes a super-batch of rows.
        source ([`ReferenceSource`]): The reference in use.
    """

    def __init__(self, collator: Callable[[Any], dict[str, Tensor]], source: ReferenceSource) -> None:
        self.collator = collator
        self.source = source

    def __call__(self, rows: Any) -> dict[str, Tensor]:
        batch = self.collator(rows)
        return {**batch, **self.source.fetch(batch)}


__all__ = ["CachedReference", "FetchingCollator", "Reference", "ReferenceSource"]
