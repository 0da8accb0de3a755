# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A reference cache on disk: a manifest, and shards of embeddings that are read where they lie.

    manifest.json              what was embedded by what, the temperature, and every shard with its sha256
    shard-00000.safetensors    image [n, D], text [m, D], offsets int64 [n + 1], valid bool [n], perhaps key int64 [n]

Shard k has the rows from `k * shard_rows` on. The captions of its i-th row are `text[offsets[i]:offsets[i + 1]]`: all
of them, since another may be drawn in each epoch. Rows that could not be read have zeros, and `valid` False. Where the
data name their rows in a column `example_id`, `key` is a copy of it, so that a stream of them finds its rows too.

Shards are memory-mapped: opening a cache reads its manifest alone, and the processes of a host share its pages.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from jest_hf.reference.fingerprint import difference
from jest_hf.selection import ContrastiveEmbeddings


MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"  # the manifest while its shards are being written
FORMAT = 1
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def write_atomically(path: Path, data: bytes) -> None:
    """
    Write a file that is there whole or not at all, whatever happens meanwhile.

    Raises:
        OSError: if it cannot be written; what was written of it is removed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror}); make room and start again: what is finished is kept",
        ) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name itself
    finally:
        os.close(folder)


def read_json(path: Path) -> dict[str, Any] | None:
    """The contents of a JSON file; `None` if it is not there."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete its folder and make the cache anew.") from error


def to_json(manifest: dict[str, Any]) -> bytes:
    """A manifest as bytes; floats keep all their digits."""
    return (json.dumps(manifest, indent=1) + "\n").encode()


def is_whole(path: Path, n_rows: int, width: int) -> bool:
    """Whether a shard is there with so many rows, going by its header: nothing else of it is read."""
    try:
        with safe_open(path, "pt") as shard:
            return shard.get_slice("image").get_shape() == [n_rows, width]
    except (FileNotFoundError, SafetensorError):
        return False


def about_shard(path: Path) -> dict[str, Any]:
    """What the manifest says about a finished shard."""
    tensors = load_file(path)
    return {
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
        "readable": int(tensors["valid"].sum()),
        "captions": int(tensors["offsets"].diff()[tensors["valid"]].sum()),
    }


class ReferenceCache:
    """
    The reference's embeddings of a data set, on disk; made by [`write_cache`], opened by [`open_cache`].

    Args:
        folder (`Path`): Where it lies.
        manifest (`dict`): Contents of its manifest.

    Attributes:
        n_rows (`int`): Rows of the data set (N).
        width (`int`): Width of the embeddings (D).
        logit_scale (`float`): The reference's multiplier of the logits, itself and not its logarithm.
        logit_bias (`float`, *optional*): The reference's bias of the logits; `None` for a model without (CLIP).
        loss (`str`): `"sigmoid"` or `"softmax"`: what the reference was made for.
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
        self._shards: dict[int, dict[str, Tensor]] = {}

    def check(self, **present: dict[str, Any]) -> None:
        """
        Refuse the cache where it is of something else.

        Args:
            present (`dict`): What is wanted, by section: `reference` ([`identify_reference`]), `reading`
                ([`describe_reading`]), `data` ([`describe_data`]). What is not given is not compared.

        Raises:
            ValueError: naming the first thing that differs.
        """
        found = difference(self.manifest, present)
        if found is not None:
            raise ValueError(
                f"the reference cache in {self.folder} is of something else: {found}; make another with `jest-hf "
                "cache-reference`, or name the one that belongs to this reference and these data."
            )

    def take(self, rows: Tensor, captions: Tensor | None = None) -> ContrastiveEmbeddings:
        """
        Embeddings of some rows, fp32 on the CPU.

        Args:
            rows (`torch.Tensor`): int64 `[n]`: numbers of rows, on the CPU.
            captions (`torch.Tensor`, *optional*): int64 `[n]`: which of a row's usable captions, counted from 0;
                needed for rows that have several.

        Raises:
            ValueError: for a row or a caption that the cache does not have, and for a shard that is damaged.
        """
        image, text = torch.empty(len(rows), self.width), torch.empty(len(rows), self.width)
        for shard, places, local in self._by_shard(rows):
            first = shard["offsets"][local]
            count = shard["offsets"][local + 1] - first
            number = torch.zeros_like(first) if captions is None else captions[places]
            self._check_captions(rows[places], number, count, drawn=captions is not None)
            image[places] = shard["image"][local].float()
            text[places] = shard["text"][first + number].float()
        return ContrastiveEmbeddings(image, text, self.logit_scale, self.logit_bias)

    def readable(self, rows: Tensor) -> Tensor:
        """Whether these rows (int64 `[n]`, on the CPU) could be read when they were embedded; bool `[n]`."""
        valid = torch.empty(len(rows), dtype=torch.bool)
        for shard, places, local in self._by_shard(rows):
            valid[places] = shard["valid"][local]
        return valid

    def verify(self) -> None:
        """Compare every shard with its sha256 now; `ValueError` for one that is damaged."""
        for number in range(self._n_shards):
            self._shard(number)

    def rows_of(self, keys: Tensor) -> Tensor:
        """
        The rows with these keys: their own `example_id`, or their number where the data have no such column.

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
                f"the reference cache in {self.folder} has no row whose example_id is {int(keys[strange][0])}; train "
                "on the data it was made of, or make another with `jest-hf cache-reference`."
            )
        return order[places]

    @cached_property
    def _keys(self) -> tuple[Tensor, Tensor] | None:
        """All keys in ascending order, and the rows they belong to; `None` where a row's number is its key."""
        if not self.manifest["keyed"]:
            return None
        known, order = torch.cat([self._shard(number)["key"] for number in range(self._n_shards)]).sort()
        twice = (known.diff() == 0).nonzero().flatten()
        if len(twice):
            raise ValueError(
                f"example_id={int(known[twice[0]])} names several rows of the reference cache in {self.folder}, which "
                "a stream cannot tell apart; give every row an example_id of its own."
            )
        return known, order

    @property
    def _n_shards(self) -> int:
        return len(self.manifest["shards"])

    def _by_shard(self, rows: Tensor) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """The shards that these rows are in: each with their places in `rows`, and with their places in the shard."""
        strange = (rows < 0) | (rows >= self.n_rows)
        if strange.any():
            raise ValueError(
                f"the reference cache in {self.folder} has rows 0 to {self.n_rows - 1}, and no row "
                f"{int(rows[strange][0])}; train on the data it was made of, or make another with `jest-hf "
                "cache-reference`."
            )
        numbers = rows // self._shard_rows
        groups = [(number, (numbers == number).nonzero().flatten()) for number in numbers.unique().tolist()]
        return [(self._shard(number), places, rows[places] % self._shard_rows) for number, places in groups]

    def _check_captions(self, rows: Tensor, number: Tensor, count: Tensor, drawn: bool) -> None:
        wrong = (number >= count) if drawn else (count > 1)
        if wrong.any():
            row, has = int(rows[wrong][0]), int(count[wrong][0])
            raise ValueError(
                f"row {row} has {has} captions in the reference cache in {self.folder}, and the super-batch "
                + (
                    f"has drawn number {int(number[wrong][0])} of them (from 0); make another cache of these data."
                    if drawn
                    else "does not say which of them was drawn (caption_number); use a JESTDataCollator that says so, "
                    "or keep one caption a row."
                )
            )

    def _shard(self, number: int) -> dict[str, Tensor]:
        """A shard, memory-mapped; compared with its sha256 when it is first used."""
        if number not in self._shards:
            path = self.folder / shard_name(number)
            if _sha256(path) != self.manifest["shards"][number]["sha256"]:
                raise ValueError(
                    f"{path} is damaged: its sha256 is not that of the manifest; delete this file, and have `jest-hf "
                    "cache-reference` make it again or the Hub send it again."
                )
            self._shards[number] = load_file(path)
        return self._shards[number]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": {}}  # another process maps the files by itself

    def __repr__(self) -> str:
        return f"ReferenceCache({str(self.folder)!r}, n_rows={self.n_rows}, width={self.width})"


def open_folder(folder: str | Path) -> ReferenceCache:
    """
    Open a cache on this disk.

    Raises:
        FileNotFoundError: if there is none, or only the beginning of one.
        ValueError: if its format is unknown, or a shard is missing or of the wrong size.
    """
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        what = "only the beginning of a reference cache" if (folder / UNFINISHED).exists() else "no reference cache"
        raise FileNotFoundError(f"{what} is in {folder}; run `jest-hf cache-reference --output_dir {folder}` first.")
    check_format(manifest, folder)
    for number, about in enumerate(manifest["shards"]):
        path = folder / shard_name(number)
        size = path.stat().st_size if path.exists() else None
        if size != about["bytes"]:
            raise ValueError(
                f"{path} {'is missing' if size is None else f'has {size} bytes'}, and the manifest says "
                f"{about['bytes']} bytes; delete it if it is there, and have `jest-hf cache-reference` make it again "
                "or the Hub send it again."
            )
    return ReferenceCache(folder, manifest)


def check_format(manifest: dict[str, Any], folder: Path) -> None:
    """Refuse a cache that another version of jest_hf has made, in another format."""
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"the reference cache in {folder} has format {manifest.get('format')!r}, and this version of jest_hf "
            f"reads format {FORMAT}; delete it, and make it anew with `jest-hf cache-reference`."
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


__all__ = ["ReferenceCache", "open_folder", "write_atomically"]
