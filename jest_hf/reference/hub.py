# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A reference cache on the Hub: a data-set repository with the same files as the folder.

The client checks no hash of what it downloads; a cache does, of each shard before its first use.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from jest_hf.reference.store import MANIFEST, ReferenceCache, open_folder


CACHE_FILES = [MANIFEST, "shard-*.safetensors"]


def open_cache(name: str | Path, revision: str | None = None, token: str | None = None) -> ReferenceCache:
    """
    Open a reference cache; the reference itself is not loaded.

    Args:
        name (`str` or `Path`): A folder, or the id of a data-set repository on the Hub.
        revision (`str`, *optional*): Branch, tag or commit of the repository.
        token (`str`, *optional*): For a private repository; default: the one that the client is logged in with.

    Raises:
        FileNotFoundError: for a folder without a finished cache.
        ValueError: for a cache that is damaged or of an unknown format, and for a revision of a folder.
    """
    name = str(name)
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if revision is not None:
            raise ValueError(f"revision={revision!r} is one of a Hub repository, and {name} is a folder; drop it.")
        return open_folder(Path(name).expanduser())
    folder = snapshot_download(name, repo_type="dataset", revision=revision, token=token, allow_patterns=CACHE_FILES)
    return open_folder(folder)


def push_reference_cache(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload reference cache",
) -> str:
    """
    Upload a finished cache as a data-set repository, which is made if it is not there.

    Args:
        folder (`str` or `Path`): The cache; its `README.md`, if it has one, goes along.
        repo_id (`str`): `owner/name`.
        private (`bool`, *optional*): Of a repository that is made; default: the owner's.
        token (`str`, *optional*): Default: the one that the client is logged in with.
        commit_message (`str`, *optional*): Of the commit.

    Returns:
        `str`: the commit that others can name as revision.

    Raises:
        FileNotFoundError, ValueError: for a cache that is unfinished or damaged; nothing is uploaded then.
    """
    open_folder(folder).verify()
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    commit = api.upload_folder(
        folder_path=folder,
        repo_id=repo_id,
        repo_type="dataset",
        commit_message=commit_message,
        allow_patterns=[*CACHE_FILES, "README.md"],
    )
    return commit.oid


__all__ = ["open_cache", "push_reference_cache"]
