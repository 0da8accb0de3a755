# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a shard of a reference cache has to hold, and how a shard shows that it is whole.

A shard carries a hash of its tensors, of its number and of the plan of its cache (reference, reading, data, storage,
temperature). So a shard of an unfinished cache, which no manifest lists yet, can be checked when the work is resumed:
a flipped bit shows, and so does a shard of another cache or of another place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


DTYPES = {"float16": torch.float16, "float32": torch.float32}
DIGESTS = "digests"  # field of a plan whose shards have a digest of each row, and a hash of their own
NORM_TOLERANCE = 0.02  # embeddings normalised in bfloat16 are up to 0.007 off, and in float16 up to 0.0008
_SEAL, _CONTENTS = "sha256", "xxh3_128"
_NOT_PLANNED = (_SEAL, "flops", "shards")  # fields of a manifest that are known last
_ROWS_AT_A_TIME = 8192


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.safetensors"


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the sha256 of its other fields."""
    fields = {name: value for name, value in manifest.items() if name != _SEAL}
    return {**fields, _SEAL: _hash_of(fields)}


def is_sealed(manifest: Mapping[str, Any]) -> bool:
    """Return whether the fields of a manifest are those that were written; a manifest of an earlier version, whose
    shards have no digests, has no sha256."""
    if _SEAL not in manifest:
        return DIGESTS not in manifest
    return sealed(manifest) == dict(manifest)


def plan_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a manifest that are known before the first shard is written."""
    return {name: value for name, value in manifest.items() if name not in _NOT_PLANNED}


def pack(tensors: Mapping[str, Tensor], number: int, plan: Mapping[str, Any]) -> bytes:
    """Return the bytes of a shard with a hash of its tensors, its number and the plan of the cache.

    Raises:
        ValueError: for embeddings that no cache may hold.
    """
    fault = fault_of_tensors(tensors, number, plan)
    if fault is not None:
        raise ValueError(
            f"the reference's embeddings cannot be cached: {fault}; check the weights of ref_model, or use fp32 "
            "instead of bf16 or fp16."
        )
    return save(dict(tensors), metadata={_CONTENTS: _contents(tensors, number, plan)})


def fault_of(path: Path, number: int, manifest: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the shard in a file, as a part of a sentence; `None` if nothing is.

    Args:
        path (`Path`): The file.
        number (`int`): Number of the shard.
        manifest (`Mapping`): The manifest of its cache, or the plan.

    Raises:
        OSError: if the file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            contents = (file.metadata() or {}).get(_CONTENTS)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, ValueError, RuntimeError) as error:
        return f"it cannot be read ({error})"
    has_hash = DIGESTS in manifest or contents is not None
    if has_hash and contents != _contents(tensors, number, plan_of(manifest)):
        return "its tensors, its number and the settings of its cache do not have the hash in it"
    return fault_of_tensors(tensors, number, manifest)


def fault_of_tensors(tensors: Mapping[str, Tensor], number: int, manifest: Mapping[str, Any]) -> str | None:
    """Return which tensor of a shard has a wrong shape, dtype or value, as [`fault_of`]."""
    storage, width, n_rows = manifest["storage"], manifest["width"], manifest["data"]["n_rows"]
    first = number * storage["shard_rows"]
    n, dtype = min(storage["shard_rows"], n_rows - first), DTYPES[storage["dtype"]]
    wanted: dict[str, tuple[torch.dtype, list[int | None]]] = {
        "image": (dtype, [n, width]),
        "text": (dtype, [None, width]),
        "offsets": (torch.int64, [n + 1]),
        "valid": (torch.bool, [n]),
    }
    if manifest["keyed"]:
        wanted["key"] = (torch.int64, [n])
    if DIGESTS in manifest:
        wanted["digest"] = (torch.int64, [n, 2])
    if set(tensors) != set(wanted):
        return f"it has the tensors {', '.join(sorted(tensors))}, and not {', '.join(sorted(wanted))}"
    for name, (of_type, shape) in wanted.items():
        found = tensors[name]
        if found.dtype != of_type or len(found.shape) != len(shape):
            return f"its tensor {name} is {_named(found)}"
        if any(want is not None and has != want for has, want in zip(found.shape, shape, strict=True)):
            return f"its tensor {name} is {_named(found)}, and rows {first} to {first + n - 1} need {shape}"
    counts = tensors["offsets"].diff()
    if int(tensors["offsets"][0]) or int(tensors["offsets"][-1]) != len(tensors["text"]) or bool((counts < 1).any()):
        return f"its tensor offsets does not divide {len(tensors['text'])} captions among {n} rows"
    rows, valid = torch.arange(first, first + n), tensors["valid"]
    for name, row_of in (("image", rows), ("text", rows.repeat_interleave(counts))):
        if (fault := _fault_of_values(name, tensors[name], row_of, valid[row_of - first])) is not None:
            return fault
    return None


def _fault_of_values(name: str, embeddings: Tensor, row_of: Tensor, valid: Tensor) -> str | None:
    """Check that embeddings have the norm 1, and those of rows that could not be read the norm 0."""
    for start in range(0, len(embeddings), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        norms = embeddings[part].float().norm(dim=1)
        # Written so that NaN is wrong.
        right = torch.where(valid[part], (norms - 1).abs() < NORM_TOLERANCE, norms == 0)
        if not right.all():
            place = int((~right).nonzero()[0])
            row, should = int(row_of[start + place]), int(valid[start + place])
            return f"the {name} embedding of row {row} has the norm {norms[place].item():.4g}, and not {should}"
    return None


def _contents(tensors: Mapping[str, Tensor], number: int, plan: Mapping[str, Any]) -> str:
    return hash_tensors(tensors, f"{_hash_of(plan)} {number}")


def hash_tensors(tensors: Mapping[str, Tensor], before: str = "") -> str:
    """Return a hash (xxh3_128) of a text, and of the names, dtypes, shapes and contents of tensors."""
    digest = xxhash.xxh3_128(before.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f" {name} {_named(tensor)} ".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_of(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _named(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


__all__ = [
    "DIGESTS",
    "DTYPES",
    "fault_of",
    "fault_of_tensors",
    "hash_tensors",
    "is_sealed",
    "pack",
    "plan_of",
    "sealed",
    "shard_name",
]
