# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A reference cache on disk: a manifest, and shards of embeddings that are memory-mapped.

    manifest.json              the reference, the data, the temperature, the sha256 of every shard and of the fields
    shard-00000.safetensors    image [n, D], text [m, D], offsets int64 [n + 1], valid bool [n], digest int64 [n, 2],
                               maybe key int64 [n]

Shard k starts with row `k * shard_rows`. The captions of its i-th row are `text[offsets[i]:offsets[i + 1]]`: all of
them, since another may be drawn in each epoch. Rows that could not be read have zeros, and `valid` False. If the data
have an integer column `example_id`, `key` is a copy of it, so that a stream of the data finds its rows too. `digest`
has 64 bits of a hash of the image and of the captions of each row, by which a run notices other rows.

Opening a cache reads its manifest alone, and the processes of a host share the mapped pages. Each shard is checked
before its first row is used: its sha256 ([`~reference.verified.ShardChecks`]), then shapes, dtypes and norms
([`~reference.shards.fault_of`]).
"""

from __future__ import annotations

from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from jest_hf.data.files import read_json, to_json, write_atomically
from jest_hf.reference.fingerprint import difference, lacking
from jest_hf.reference.shards import DIGESTS, DTYPES, fault_of, is_sealed, shard_name
from jest_hf.reference.verified import ShardChecks, sha256_of
from jest_hf.selection import ContrastiveEmbeddings


MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"  # the manifest while its shards are being written
FORMAT = 1
_FIELDS = ("reference", "reading", "data", "storage", "keyed", "loss", "width", "logit_scale", "logit_bias", "flops")


def is_whole(path: Path, n_rows: int, width: int) -> bool:
    """Return whether a file is a shard with `n_rows` embeddings of width `width`; only its header is read."""
    try:
        with safe_open(path, "pt") as shard:
            return shard.get_slice("image").get_shape() == [n_rows, width]
    except (FileNotFoundError, SafetensorError):
        return False


def about_shard(path: Path, number: int, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a finished shard in the manifest.

    Raises:
        ValueError: for a shard that was damaged after it was written.
    """
    if (fault := fault_of(path, number, plan)) is not None:
        raise ValueError(f"{path} is damaged: {fault}; run `jest-hf cache-reference` again, which makes it anew.")
    tensors = load_file(path)
    return {
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "readable": int(tensors["valid"].sum()),
        "captions": int(tensors["offsets"].diff()[tensors["valid"]].sum()),
    }


class ReferenceCache:
    """The reference's embeddings of a data set, on disk. [`write_cache`] makes a cache, and [`open_cache`] opens it.

    Args:
        folder (`Path`): Folder of the cache.
        manifest (`dict`): Contents of the cache's manifest.

    Attributes:
        n_rows (`int`): Rows of the data set (N).
        width (`int`): Width of the embeddings (D).
        logit_scale (`float`): The reference's multiplier of the logits (not its logarithm).
        logit_bias (`float`, *optional*): The reference's bias of the logits; `None` for a model without one (CLIP).
        loss (`str`): `"sigmoid"` or `"softmax"`: the loss that the reference was trained with.
        flops (`float`): FLOPs of embedding the data set, once and for all runs that use the cache.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.n_rows: int = manifest["data"]["n_rows"]
        self.width: int = manifest["width"]
        self.logit_scale: float = manifest["logit_scale"]
        self.logit_bias: float | None = manifest["logit_bias"]
        self.loss: str = manifest["loss"]
        self.flops: float = manifest["flops"]
        self._shard_rows: int = manifest["storage"]["shard_rows"]
        shards = manifest["shards"]
        files = [folder / shard_name(number) for number in range(len(shards))]
        self._checks = ShardChecks(files, [about["sha256"] for about in shards], self._fault)
        self._shards: dict[int, dict[str, Tensor]] = {}

    def check(self, **present: dict[str, Any]) -> None:
        """Check that the cache was made with this reference and of these data.

        Args:
            present (`dict`): Descriptions of the run, by section: `reference` ([`identify_reference`]), `reading`
                ([`describe_reading`]), `data` ([`describe_data`]). Sections that are not given are not compared.

        Raises:
            ValueError: if the cache differs; the message names the first difference.
        """
        found = lacking(self.manifest, present) or difference(self.manifest, present)
        if found is not None:
            raise ValueError(
                f"the reference cache in {self.folder} does not match this run: {found}; make a new one with `jest-hf "
                "cache-reference`, or set reference_cache to one of this reference and these data."
            )

    def take(self, rows: Tensor, captions: Tensor | None = None) -> ContrastiveEmbeddings:
        """Return the embeddings of some rows, fp32, on the CPU.

        Args:
            rows (`torch.Tensor`): Numbers of rows, int64 `[n]`, on the CPU.
            captions (`torch.Tensor`, *optional*): Number of the caption of each row among the row's usable captions,
                from 0, int64 `[n]`. Needed for rows with several captions.

        Raises:
            ValueError: for a row or a caption that the cache does not have, and for a damaged shard.
        """
        image, text = self.stored(rows, captions)
        return ContrastiveEmbeddings(image.float(), text.float(), self.logit_scale, self.logit_bias)

    def stored(self, rows: Tensor, captions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the image and text embeddings of some rows, each `[n, D]`, in the dtype in which they are stored.

        Arguments and errors are those of [`~ReferenceCache.take`].
        """
        dtype = DTYPES[self.manifest["storage"]["dtype"]]
        image, text = (torch.empty(len(rows), self.width, dtype=dtype) for _ in range(2))
        for shard, places, local in self._by_shard(rows):
            first = shard["offsets"][local]
            count = shard["offsets"][local + 1] - first
            number = torch.zeros_like(first) if captions is None else captions[places]
            self._check_captions(rows[places], number, count, drawn=captions is not None)
            image[places] = shard["image"][local]
            text[places] = shard["text"][first + number]
        return image, text

    def readable(self, rows: Tensor) -> Tensor:
        """Return which rows (int64 `[n]`, on the CPU) could be read when the cache was made, bool `[n]`."""
        valid = torch.empty(len(rows), dtype=torch.bool)
        for shard, places, local in self._by_shard(rows):
            valid[places] = shard["valid"][local]
        return valid

    def caption_counts(self, rows: Tensor) -> Tensor:
        """Return the number of usable captions of rows (int64 `[n]`, on the CPU), int64 `[n]`."""
        counts = torch.empty_like(rows)
        for shard, places, local in self._by_shard(rows):
            counts[places] = shard["offsets"][local + 1] - shard["offsets"][local]
        return counts

    @property
    def has_digests(self) -> bool:
        """Whether the cache can tell other rows; caches of earlier versions cannot."""
        return DIGESTS in self.manifest

    def digests(self, rows: Tensor) -> Tensor:
        """Return the digests of rows (int64 `[n]`, on the CPU) as in [`~data.row_digest.content_digests`], int64
        `[n, 2]`; 0 for a row that could not be read, and in a cache without digests.
        """
        found = rows.new_zeros(len(rows), 2)
        for shard, places, local in self._by_shard(rows) if self.has_digests else ():
            found[places] = shard["digest"][local]
        return found

    def verify_ahead(self) -> None:
        """Begin to check every shard, in the background. A damaged shard raises where one of its
        rows is used for the first time, also in a process of a loader.
        """
        self._checks.start()

    def verify(self) -> None:
        """Check every shard now; raise a `ValueError` for a damaged one."""
        for number in range(self._n_shards):
            self._shard(number)

    def rows_of(self, keys: Tensor) -> Tensor:
        """Return the numbers of the rows with these keys, int64 `[n]`. A key is the value of the data's column
        `example_id`; without such a column it is the number of the row.

        Raises:
            ValueError: for a key that the cache does not have.
        """
        if self._keys is None:
            return keys
        known, order = self._keys
        places = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
        strange = known[places] != keys
        if strange.any():
            raise ValueError(
                f"the reference cache in {self.folder} has no row with example_id={int(keys[strange][0])}; train on "
                "the data that the cache was made of, or make a new cache with `jest-hf cache-reference`."
            )
        return order[places]

    def keys_of(self, rows: Tensor) -> Tensor:
        """Return the keys of rows (int64 `[n]`, on the CPU), int64 `[n]`: the inverse of `rows_of`."""
        keys = rows.clone()
        if self.manifest["keyed"]:
            for shard, places, local in self._by_shard(rows):
                keys[places] = shard["key"][local]
        return keys

    @cached_property
    def _keys(self) -> tuple[Tensor, Tensor] | None:
        """All keys in ascending order, and their rows; `None` if the number of a row is its key."""
        if not self.manifest["keyed"]:
            return None
        known, order = torch.cat([self._shard(number)["key"] for number in range(self._n_shards)]).sort()
        twice = (known.diff() == 0).nonzero().flatten()
        if len(twice):
            raise ValueError(
                f"example_id={int(known[twice[0]])} is the id of several rows of the reference cache in "
                f"{self.folder}, which a stream cannot tell apart; give every row an example_id of its own, and make "
                "a new cache."
            )
        return known, order

    @property
    def _n_shards(self) -> int:
        return len(self.manifest["shards"])

    def _by_shard(self, rows: Tensor) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Return the shards of these rows: each with the rows' places in `rows`, and their places in the shard."""
        strange = (rows < 0) | (rows >= self.n_rows)
        if strange.any():
            raise ValueError(
                f"the reference cache in {self.folder} has rows 0 to {self.n_rows - 1}, and no row "
                f"{int(rows[strange][0])}; train on the data that the cache was made of, or make a new cache with "
                "`jest-hf cache-reference`."
            )
        numbers = rows // self._shard_rows
        groups = [(number, (numbers == number).nonzero().flatten()) for number in numbers.unique().tolist()]
        return [(self._shard(number), places, rows[places] % self._shard_rows) for number, places in groups]

    def _check_captions(self, rows: Tensor, number: Tensor, count: Tensor, drawn: bool) -> None:
        wrong = (number >= count) if drawn else (count > 1)
        if wrong.any():
            row, has = int(rows[wrong][0]), int(count[wrong][0])
            raise ValueError(
                f"row {row} has {has} captions in the reference cache in {self.folder}, "
                + (
                    f"and the super-batch has its caption number {int(number[wrong][0])} (from 0); make a new cache "
                    "of these data."
                    if drawn
                    else "and the super-batch has no caption_number to tell which was drawn; use JESTDataCollator, or "
                    "keep one caption a row."
                )
            )

    def _shard(self, number: int) -> dict[str, Tensor]:
        """Return a shard, memory-mapped, once it has been checked."""
        if number not in self._shards:
            self._checks.wait_for(number)
            self._shards[number] = load_file(self.folder / shard_name(number))
        return self._shards[number]

    def _fault(self, path: Path, number: int) -> str | None:
        return fault_of(path, number, self.manifest)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}  # another process maps the files itself

    def __repr__(self) -> str:
        return f"ReferenceCache({str(self.folder)!r}, n_rows={self.n_rows}, width={self.width})"


def open_folder(folder: str | Path) -> ReferenceCache:
    """Open a cache in a folder.

    Args:
        folder (`str` or `Path`): Folder of the cache.

    Raises:
        FileNotFoundError: if the folder has no cache, or an unfinished one.
        ValueError: if the manifest is damaged or of an unknown format, or a shard is missing or of the wrong size.
    """
    folder = Path(folder)
    manifest = read_manifest(folder / MANIFEST)
    if manifest is None:
        what = "an unfinished reference cache" if (folder / UNFINISHED).exists() else "no reference cache"
        raise FileNotFoundError(f"{folder} has {what}; run `jest-hf cache-reference --output_dir {folder}` first.")
    check_format(manifest, folder)
    if not _is_complete(manifest):
        raise _damaged(folder / MANIFEST, "it lacks fields or shards")
    for number, about in enumerate(manifest["shards"]):
        path = folder / shard_name(number)
        size = path.stat().st_size if path.exists() else None
        if size != about["bytes"]:
            raise ValueError(
                f"{path} {'is missing' if size is None else f'has {size} bytes'}, and the manifest lists it with "
                f"{about['bytes']} bytes; delete it if it is there, and run `jest-hf cache-reference` again or "
                "download it from the Hub again."
            )
    return ReferenceCache(folder, manifest)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a manifest, finished or not; `None` if there is no such file.

    Raises:
        ValueError: if it is damaged, or was changed after it was written.
    """
    manifest = read_json(path)
    if manifest is not None and manifest.get("format") == FORMAT and not is_sealed(manifest):
        raise _damaged(path, "its fields are not those that were written")
    return manifest


def _is_complete(manifest: dict[str, Any]) -> bool:
    try:
        n_shards = ceil(manifest["data"]["n_rows"] / manifest["storage"]["shard_rows"])
        return all(name in manifest for name in _FIELDS) and len(manifest["shards"]) == n_shards
    except (KeyError, TypeError, ZeroDivisionError):
        return False


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is damaged ({reason}); delete its folder, and make a new cache with `jest-hf cache-reference`, or "
        "download it from the Hub again."
    )


def check_format(manifest: dict[str, Any], folder: Path) -> None:
    """Refuse a cache that another version of jest_hf wrote in another format."""
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"the reference cache in {folder} has format {manifest.get('format')!r}, and this version of jest_hf "
            f"reads format {FORMAT}; delete it, and make a new one with `jest-hf cache-reference`."
        )


__all__ = ["ReferenceCache", "open_folder", "read_manifest", "to_json", "write_atomically"]
