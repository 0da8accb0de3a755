# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A reference cache on the Hub: a data-set repository with the same files as the folder.

The Hub's client does not verify the contents of a download. Here every file is compared with the Hub's hash when the
cache is opened, and every shard with the sha256 in the manifest before its first use.
"""

from __future__ import annotations

from pathlib import Path

import torch

from jest_hf.distributed import Ranks, ask_first_rank
from jest_hf.hub import reference_cache_card
from jest_hf.hub.data_push import push_data
from jest_hf.hub.pull import pull
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
    """Open a reference cache. The reference itself is not loaded.

    Args:
        name (`str` or `Path`): A folder, or the id of a data-set repository on the Hub.
        revision (`str`, *optional*): Branch, tag or commit of the repository. Default: `main`.
        token (`str`, *optional*): Token for a private repository. Default: the token of `hf auth login`.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The ranks that open the same cache, which makes the call a
            collective: the first rank pulls, and the others open the same commit. Default: this process alone.
        device (`torch.device`, *optional*, defaults to `"cpu"`): The device on which ranks exchange tensors.

    Raises:
        FileNotFoundError: for a folder or a repository without a finished cache.
        ValueError: for a cache that is damaged or of an unknown format, and for a revision of a folder.
        OSError: for a repository that cannot be pulled ([`~jest_hf.hub.pull.pull`]).
    """
    name, ranks = str(name), ranks or Ranks()
    if Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if revision is not None:
            raise ValueError(
                f"reference_cache_revision={revision!r} names a revision of a Hub repository, but "
                f"reference_cache={name!r} is a folder; leave the revision out."
            )
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
    """Upload a finished cache with a card to a data-set repository, which is created if it does not exist. Shards of
    an older cache are removed from the repository; its earlier commits keep them.

    Args:
        folder (`str` or `Path`): The cache. Its `README.md`, if there is one, is uploaded too.
        repo_id (`str`): Repository of the cache, `owner/name`.
        dataset, split, license (`str`, *optional*): For the card, see [`~jest_hf.hub.reference_cache_card`].
        private (`bool`, *optional*): Whether a new repository is private. Default: the owner's setting.
        token (`str`, *optional*): Token that may write. Default: the token of `hf auth login`.
        commit_message (`str`, *optional*): Message of the commit.

    Returns:
        `str`: the commit, for others to use as revision. Without a change, no commit is made.

    Raises:
        FileNotFoundError, ValueError: for an unfinished or damaged cache; then nothing is uploaded.
        OSError: in one sentence, if the push failed after three tries. The cache is kept.
    """
    cache = open_folder(folder)
    cache.verify()
    return push_data(
        folder,
        repo_id,
        lambda name: reference_cache_card(cache.manifest, name, dataset=dataset, split=split, license=license),
        name="reference cache",
        files=[MANIFEST, SHARDS, CARD],
        replaced=[SHARDS],
        commit_message=commit_message,
        private=private,
        token=token,
    )


__all__ = ["open_cache", "push_reference_cache"]
