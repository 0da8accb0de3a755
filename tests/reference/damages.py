# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Damages of the folder of a reference cache: of its files, of its manifest, and of what a program computes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jest_hf.reference.shards import pack, plan_of, sealed
from jest_hf.reference.verified import sha256_of


SHARDS = [f"shard-{number:05d}.safetensors" for number in range(5)]
Change = Callable[[dict[str, torch.Tensor]], Any]


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def cut(name: str, kept: int) -> Callable[[Path], None]:
    return lambda folder: write(folder / name, (folder / name).read_bytes()[:kept])


def flipped(name: str, place: float, bit: int = 0) -> Callable[[Path], None]:
    """Flip a bit at a share of the file's length."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[min(int(place * len(data)), len(data) - 1)] ^= 1 << bit
        write(folder / name, bytes(data))

    return damage


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Edit the manifest by hand."""

    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))

    return damage


def put(section: str, name: str, value: Any) -> Callable[[Path], None]:
    return edited(lambda manifest: manifest[section].update({name: value}))


def remade(change: Change, number: int = 1) -> Callable[[Path], None]:
    """Write a shard and the manifest with right hashes, as a program would that has computed something wrong."""

    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        path = folder / SHARDS[number]
        tensors = load_file(path)
        tensors = {name: value.clone() for name, value in tensors.items()}
        change(tensors)
        save_file(tensors, path)
        with_hash = pack_unchecked(tensors, number, plan_of(manifest))
        write(path, with_hash)
        manifest["shards"][number] |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))

    return damage


def pack_unchecked(tensors: dict[str, torch.Tensor], number: int, plan: dict[str, Any]) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jest_hf.reference.shards.fault_of_tensors", lambda *given: None)
        return pack(tensors, number, plan)


def tensors_changed(change: Change) -> Callable[[Path], None]:
    """Write other tensors into a shard, of the same size, and leave the manifest as it is."""

    def damage(folder: Path) -> None:
        path = folder / SHARDS[2]
        tensors = {name: value.clone() for name, value in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)

    return damage


def swapped(folder: Path) -> None:
    first, second = (folder / name for name in SHARDS[:2])
    data = first.read_bytes()
    write(first, second.read_bytes())
    write(second, data)


def swapped_with_their_hashes(folder: Path) -> None:
    """Two shards, and their entries in the manifest too, which gets a right sha256."""
    swapped(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = manifest["shards"]
    shards[0], shards[1] = shards[1] | {"name": SHARDS[0]}, shards[0] | {"name": SHARDS[1]}
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


def reordered(tensors: dict[str, torch.Tensor]) -> None:
    """The rows of a shard backwards, with all that belongs to them."""
    for name in ("image", "text", "digest", "key"):
        tensors[name] = tensors[name].flip(0).contiguous()


def set_in(name: str, index: Any, value: float) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][index] = value

    return change


def replaced_in(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda tensors: tensors.update({name: make(tensors[name]).contiguous()})


def as_of_an_earlier_version(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("digests", "sha256"):
        del manifest[name]
    for number, about in enumerate(manifest["shards"]):
        path = folder / SHARDS[number]
        tensors = {name: value.clone() for name, value in load_file(path).items() if name != "digest"}
        save_file(tensors, path)
        about |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def earlier_and_edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A cache of an earlier version, whose manifest has no sha256 of its fields."""

    def damage(folder: Path) -> None:
        as_of_an_earlier_version(folder)
        edited(change)(folder)

    return damage
