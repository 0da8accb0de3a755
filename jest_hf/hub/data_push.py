# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Push a folder to a data-set repository: a curated data set, a reference cache."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import DatasetCard, HfApi

from jest_hf.hub.card_file import push_card
from jest_hf.hub.pull import reason
from jest_hf.hub.retries import try_repeatedly
from jest_hf.hub.uploads import wait_to_upload


def push_data(
    folder: str | Path,
    repo_id: str,
    card: Callable[[str], DatasetCard],
    *,
    name: str,
    files: Sequence[str],
    replaced: Sequence[str],
    commit_message: str,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload files of a folder with a card to a data-set repository, which is created if it does not exist.

    Args:
        folder (`str` or `Path`): The folder.
        repo_id (`str`): The repository, `owner/name`.
        card (`Callable`): Makes the card; gets the repository's full name.
        name (`str`): What is pushed, for error messages, such as `"reference cache"`.
        files (sequence of `str`): Patterns of the files to upload.
        replaced (sequence of `str`): Patterns of files of an older push to remove; earlier commits keep them.
        commit_message (`str`): Message of the commit.
        private (`bool`, *optional*): Whether a new repository is private. Default: the owner's setting.
        token (`str`, *optional*): Token that may write. Default: the token of `hf auth login`.

    Returns:
        `str`: the commit. Without a change, no commit is made.

    Raises:
        OSError: in one sentence, if the push failed after three tries. The folder is kept.
    """
    api = HfApi(token=token)
    try:
        made = try_repeatedly(api.create_repo, repo_id, repo_type="dataset", private=private, exist_ok=True)
        upload = partial(
            api.upload_folder,
            folder_path=folder,
            repo_id=made.repo_id,
            repo_type="dataset",
            commit_message=commit_message,
            allow_patterns=list(files),
            delete_patterns=list(replaced),
        )
        try_repeatedly(wait_to_upload, upload, made.repo_id)
        commit: str = try_repeatedly(push_card, card(made.repo_id), made.repo_id, token=token)
        return commit
    except Exception as error:
        included = [word for pattern in files for word in ("--include", pattern)]
        command = ["hf", "upload", repo_id, str(folder), "--repo-type", "dataset", *included]
        raise OSError(
            f"the push of the {name} to {repo_id!r} failed ({reason(error)}); {folder} is kept, so push it later with "
            f"`{shlex.join(command)}`."
        ) from error


__all__ = ["push_data"]
