# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Files of a cache on disk: written in one move, and manifests in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jest_hf.distributed import Ranks
from jest_hf.files import lock, remove_unfinished, replacing, unlock


CLAIM = ".writing"  # file of the lock of the process that writes in a folder


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file in one move: whatever happens meanwhile, it is there whole or not at all.

    Args:
        path (`Path`): The file.
        data (`bytes`): The contents of the file.

    Raises:
        OSError: if the file cannot be written. The part that was written is removed.
    """
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} could not be written ({error.strerror}); make room and start again: finished files are kept",
        ) from error


def claim_folder(folder: Path, ranks: Ranks, device: Any = "cpu") -> None:
    """Take a folder for writing, and remove files that a killed process has left half written. A collective.

    The claim ends with the process, or with [`release_folder`].

    Raises:
        ValueError: on all ranks, if another process writes there.
    """
    is_free = True
    if ranks.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        is_free = lock(folder / CLAIM)
        if is_free:
            remove_unfinished(folder)
    if not all(ranks.gather_counts(int(is_free), device)):
        raise ValueError(f"another process is writing in {folder}; wait for its end, or choose another folder.")


def release_folder(folder: Path, ranks: Ranks) -> None:
    """End a claim of [`claim_folder`]."""
    if ranks.rank == 0:
        unlock(folder / CLAIM)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the contents of a JSON file; `None` if there is no such file."""
    try:
        contents = json.loads(path.read_bytes())
        if not isinstance(contents, dict):
            raise ValueError(f"a {type(contents).__name__}, and no fields")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete its folder, and make a new cache.") from error
    return contents


def to_json(manifest: dict[str, Any]) -> bytes:
    """Return a manifest as JSON; floats keep all their digits."""
    return (json.dumps(manifest, indent=1) + "\n").encode()


def changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Return the first field that both have with different values, as a part of a sentence; `None` if they agree.

    Args:
        ours (`Mapping`): Fields of this run, after [`flat`].
        theirs (`Mapping`): Fields of a cache.
    """
    for name in ours:
        if name in theirs and ours[name] != theirs[name]:
            return f"{name} was {theirs[name]!r}, and in this run it is {ours[name]!r}"
    return None


def flat(fields: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the fields of nested mappings, with the names of those around them: `data.row.0`."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


__all__ = ["CLAIM", "changed", "claim_folder", "flat", "read_json", "release_folder", "to_json", "write_atomically"]
