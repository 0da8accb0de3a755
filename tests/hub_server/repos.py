# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Repositories as the Hub keeps them: blobs and commits by their hash, branches and tags that point at commits."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml


# What the Hub stores as LFS whatever its size; everything else only when it is large.
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.parquet", "*.arrow", "*.model", "*.zip", "*.npy")
LFS_SIZE = 10_000_000
ENTRY = 48  # bytes of each entry of a shard
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()


@dataclass(frozen=True)
class Blob:
    """The content of a file, and whether git holds it or a pointer to it."""

    data: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def oid(self) -> str:
        """What git calls it; an LFS file's is that of the pointer."""
        data = self.data
        if self.lfs:
            data = b"version https://git-lfs.github.com/spec/v1\n"
            data += f"oid sha256:{self.sha256}\nsize {self.size}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def etag(self) -> str:
        """What the clients' cache names it."""
        return self.sha256 if self.lfs else self.oid

    def describe(self, path: str) -> dict[str, Any]:
        """As an entry of a tree."""
        entry = {"type": "file", "path": path, "oid": self.oid, "size": self.size}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class XetBlob(Blob):
    """An LFS file that was uploaded by Xet: its bytes are in the content-addressed store, and the Hub knows hashes."""

    sha256: str = ""
    size: int = 0
    xet_hash: str = ""

    def describe(self, path: str) -> dict[str, Any]:
        return super().describe(path) | {"xetHash": self.xet_hash}


@dataclass(frozen=True)
class Commit:
    """A state of all files, whose id follows from the files and from the commit before."""

    files: dict[str, Blob]
    title: str
    parent: str = ""

    @cached_property
    def oid(self) -> str:
        state = {path: blob.oid for path, blob in sorted(self.files.items())}
        return hashlib.sha1(json.dumps([state, self.title, self.parent]).encode()).hexdigest()


@dataclass
class Repo:
    """
    A model or data set repository.

    `gated` repositories tell everyone what is in them and give it to the owner and to `granted` users only.
    """

    kind: str  # "models" or "datasets"
    name: str  # with its namespace
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add(Commit({".gitattributes": Blob(GITATTRIBUTES)}, "initial commit"), "main")

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]

    def add(self, commit: Commit, branch: str) -> None:
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag or a commit id names."""
        return self.commits.get(self.branches.get(revision, self.tags.get(revision, revision)))

    def history(self, commit: Commit) -> list[Commit]:
        found = [commit]
        while found[-1].parent:
            found.append(self.commits[found[-1].parent])
        return found

    def describe(self, commit: Commit) -> dict[str, Any]:
        """As the answer to a request for the repository's information."""
        siblings = []
        for path, blob in sorted(commit.files.items()):
            about = {"rfilename": path, "size": blob.size, "blobId": blob.oid}
            if blob.lfs:
                about["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}
            siblings.append(about)
        return {
            "_id": self.name,
            "id": self.name,
            "sha": commit.oid,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
            "cardData": _metadata(commit),
        }

    def tree(self, commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]] | None:
        """The entries below a folder; `None` where there is no such folder."""
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(name.encode()).hexdigest()
                entries[name] = {"type": "directory", "path": name, "oid": oid, "size": 0}
            if recursive or len(parts) == 1:
                entries[path] = blob.describe(path)
        return list(entries.values()) if entries or not folder else None


def _metadata(commit: Commit) -> dict[str, Any]:
    """The metadata at the top of the card."""
    card = commit.files.get("README.md", Blob(b"")).data.decode(errors="replace")
    found = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", card, re.DOTALL)
    try:
        about = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return about if isinstance(about, dict) else {}


def stored_as_lfs(path: str, size: int) -> bool:
    """Whether the Hub asks for a file as an LFS object."""
    name = path.rsplit("/", 1)[-1]
    return size >= LFS_SIZE or any(fnmatch.fnmatch(name, pattern) for pattern in LFS_PATTERNS)


def xet_files(cas: Path | None) -> dict[str, str]:
    """Xet's hashes of the files in a content-addressed store, by their sha256: as its shards tell."""
    found = {}
    for shard in cas.rglob("shards/*.mdb") if cas is not None else ():
        data, position = shard.read_bytes(), ENTRY  # a header, and one record after the other
        while (file := data[position : position + ENTRY])[:32] != b"\xff" * 32:
            flags, n_entries = struct.unpack("<II", file[32:40])
            has_verification, has_sha256 = bool(flags & 1 << 31), bool(flags & 1 << 30)
            position += ENTRY * (1 + n_entries * (1 + has_verification))
            if has_sha256:
                found[_hash(data[position : position + 32])] = _hash(file[:32])
                position += ENTRY
    return found


def _hash(data: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", data))
