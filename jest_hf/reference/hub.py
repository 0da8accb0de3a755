# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A reference cache on the Hub: a data-set repository with the same files as the folder.

The client checks no hash of what it downloads. Here every file is compared with the Hub's hash when the cache is
opened, and every shard with that of the manifest before its first use.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import HfApi

from jest_hf.distributed import Ranks, ask_first_rank
from jest_hf.hub import push_card, reference_cache_card
from jest_hf.hub.publisher import try_repeatedly
from jest_hf.hub.pull import pull, reason
from jest_hf.reference.store import MANIFEST, ReferenceCache, open_folder


SHARDS = "shard-*.safetensors"
CARD = "README.md"


def open_cache(
    name: str | Path,
    revision: str | None = None,
    token: str | None = None,
    *,
    ranks: Ranks | None = None,
    device: torch.device | str = "cpu",
) -> ReferenceCache:
    """
    Open a reference cache; the reference itself is not loaded.

    Args:
        name (`str` or `Path`): A folder, or the id of a data-set repository on the Hub.
        revision (`str`, *optional*): Branch, tag or commit of the repository.
        token (`str`, *optional*): For a private repository; default: the one that the client is logged in with.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): Who opens the same cache; a collective. The first pulls it,
            and the others open the commit that it got. `None` is this process alone.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Where tensors have to be to travel between ranks.

    Raises:
        FileNotFoundError: for a folder or a repository without a finished cache.
        ValueError: for a cache that is damaged or of an unknown format, and for a revision of a folder.
        OSError: for a repository that cannot be pulled ([`~jest_hf.hub.pull.pull`]).
    """
    name, ranks = str(name), ranks or Ranks()
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if revision is not None:
            raise ValueError(f"revision={revision!r} is one of a Hub repository, and {name} is a folder; drop it.")
        return open_folder(Path(name).expanduser())

    def pull_at(commit: str | None) -> ReferenceCache:
        snapshot = pull(name, commit, "reference_cache", [MANIFEST, SHARDS], repo_type="dataset", token=token)
        return open_folder(snapshot.folder)

    first = ask_first_rank(ranks, lambda: pull_at(revision), device)
    return first if ranks.rank == 0 else pull_at(first.folder.name)


def push_reference_cache(
    folder: str | Path,
    repo_id: str,
    *,
    dataset: str | None = None,
    split: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload reference cache",
) -> str:
    """
    Upload a finished cache as a data-set repository, which is made if it is not there, with a card. Shards of an older
    cache in it are removed; its commits keep them.

    Args:
        folder (`str` or `Path`): The cache; its `README.md`, if it has one, goes along.
        repo_id (`str`): `owner/name`.
        dataset, split, license (`str`, *optional*): For the card, see [`~jest_hf.hub.reference_cache_card`].
        private (`bool`, *optional*): Of a repository that is made; default: the owner's.
        token (`str`, *optional*): Default: the one that the client is logged in with.
        commit_message (`str`, *optional*): Of the commit.

    Returns:
        `str`: the commit that others can name as revision; none is made where nothing has changed.

    Raises:
        FileNotFoundError, ValueError: for a cache that is unfinished or damaged; nothing is uploaded then.
        OSError: in one sentence, if the push failed after three tries. The cache stays as it is.
    """
    cache = open_folder(folder)
    cache.verify()
    api = HfApi(token=token)
    try:
        made = try_repeatedly(api.create_repo, repo_id, repo_type="dataset", private=private, exist_ok=True)
        try_repeatedly(
            api.upload_folder,
            folder_path=folder,
            repo_id=made.repo_id,
            repo_type="dataset",
            commit_message=commit_message,
            allow_patterns=[MANIFEST, SHARDS, CARD],
            delete_patterns=SHARDS,
        )
        card = reference_cache_card(cache.manifest, made.repo_id, dataset=dataset, split=split, license=license)
        return try_repeatedly(push_card, card, made.repo_id, token=token)
    except Exception as error:
        raise OSError(
            f"the push of the reference cache to {repo_id!r} failed ({reason(error)}); the cache in {folder} is kept, "
            f"so push it later with `hf upload {repo_id} {folder} --repo-type dataset` or push_reference_cache()."
        ) from error


__all__ = ["open_cache", "push_reference_cache"]
