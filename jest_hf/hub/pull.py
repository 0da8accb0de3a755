# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pull a model or a reference cache from the Hub: at one commit, without pickles, every byte verified.

The Hub's client checks the size of a download and not its contents, and never checks its cache again. But it names
each file in the cache by the hash that the Hub gives: the sha256 of a large file, git's hash of a small one. Comparing
contents and name costs no request, and works offline too.
"""

from __future__ import annotations

import hashlib
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging

from jest_hf.hub.retries import WAITS, limit_waits


logger = logging.get_logger(__name__)

WEIGHTS = ("model.safetensors", "model-*.safetensors", "adapter_model.safetensors")
# Configurations, processor and tokenizer.
PROCESSOR_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at one commit, or of a local folder.

    Args:
        name (`str`): `owner/name`, or the path of a local folder.
        folder (`pathlib.Path`): Folder of the files; that of a repository is in the client's cache, and read only.
        commit (`str`, *optional*): The commit, 40 hexadecimal digits; `None` for a local folder.
    """

    name: str
    folder: Path
    commit: str | None


def pull_model(repo_id: str, revision: str | None = None, option: str = "ref_model") -> Snapshot:
    """Download the files of a model and its processor that are not cached, and verify all files.

    Args:
        repo_id (`str`): Repository of the model, `owner/name`.
        revision (`str`, *optional*): Branch, tag or commit. Default: `main`.
        option (`str`, *optional*, defaults to `"ref_model"`): Name of the option in error messages.

    Raises:
        OSError: as [`pull`], and for a model without weights in safetensors.
    """
    snapshot = pull(repo_id, revision, option, (*WEIGHTS, *PROCESSOR_FILES))
    check_safetensors(snapshot.folder, WEIGHTS, f"{option}={repo_id!r}")
    return snapshot


def check_safetensors(folder: Path, names: Sequence[str], setting: str) -> None:
    """Refuse a folder without weights in safetensors.

    Args:
        folder (`Path`): The folder.
        names (sequence of `str`): Names or patterns of files of weights, one of which must be there.
        setting (`str`): Option and value in the error message, such as `"ref_model='owner/name'"`.

    Raises:
        OSError: if there is no such file.
    """
    if not any(path for name in names for path in folder.glob(name)):
        raise OSError(
            f"{setting} has no weights in safetensors, and a pickle can run code when it is opened; convert the model "
            "with save_pretrained, and pass the folder or a repository of the result."
        )


def pull(
    repo_id: str,
    revision: str | None,
    option: str,
    files: Sequence[str],
    *,
    repo_type: str = "model",
    token: str | None = None,
) -> Snapshot:
    """Download the files of a repository that are not cached, and verify all files. Folders in the repository
    (checkpoints, other formats) are left out.

    With `HF_HUB_OFFLINE` only the cache is read. On a file system without links the cache has no hashes, and nothing
    is verified.

    Args:
        repo_id (`str`): The repository, `owner/name`.
        revision (`str`, *optional*): Branch, tag or commit; `None` means `main`.
        option (`str`): Name of the option in error messages.
        files (sequence of `str`): Patterns of the names of the files.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"` or `"dataset"`.
        token (`str`, *optional*): Token for a private repository. Default: the token of `hf auth login`.

    Raises:
        OSError: in one sentence, if the repository, the revision, the access, the connection or the cached copy is
            missing, or if a file is still damaged after a second download.
    """
    setting = f"{option}={repo_id!r}"
    for wait in (*WAITS, None):
        limit_waits()
        try:
            folder = Path(
                snapshot_download(
                    repo_id,
                    repo_type=repo_type,
                    revision=revision,
                    token=token,
                    allow_patterns=list(files),
                    ignore_patterns="*/*",
                )
            )
            break
        # Not narrower: the library of the connection, and so its exceptions, differ with the client's version.
        except Exception as raised:
            # The client reads the cache after a failed request; the cause is that request's error.
            missing = isinstance(raised, LocalEntryNotFoundError)
            error = raised.__cause__ if missing and raised.__cause__ is not None else raised
            if wait is None or _is_final(error):
                raise OSError(_explain(error, setting, option, repo_id, revision, repo_type)) from raised
            logger.warning(f"{setting} could not be pulled ({reason(error)}); trying again in {wait:.0f} s.")
            time.sleep(wait)
    snapshot = Snapshot(repo_id, folder, folder.name)
    for path in sorted(folder.glob("*")):  # without a matching file there is no folder
        if not is_intact(path):
            _mend(path, snapshot, setting, repo_type, token)
    return snapshot


@cache
def license_of(repo_id: str) -> str | None:
    """Return the licence that the card of a model on the Hub names; `None` if it names none, or cannot be read now."""
    try:
        card = HfApi().model_info(repo_id, timeout=10).card_data  # one request, which is not repeated
    except Exception as error:  # as in `pull`
        logger.info(f"The licence of {repo_id} is not known: {error}")
        return None
    return card.license if card is not None and isinstance(card.license, str) else None


def is_intact(path: Path) -> bool:
    """Return whether a file of the client's cache has the hash that is its name there: sha256, or git's hash."""
    # One link, and no further: the blob itself can be a link to a blob under another name, which repositories share.
    name = path.readlink().name if path.is_symlink() else ""
    if len(name) not in (40, 64):
        return True
    digest = hashlib.sha256() if len(name) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == name


def _mend(path: Path, snapshot: Snapshot, setting: str, repo_type: str, token: str | None) -> None:
    """Download a damaged file again."""
    damaged = f"{setting}: the copy of {path.name} in {snapshot.folder} differs from the file on the Hub"
    if is_offline_mode():
        raise OSError(f"{damaged}; unset HF_HUB_OFFLINE to download it again.")
    logger.warning(f"{damaged}; downloading it again.")
    try:
        hf_hub_download(
            snapshot.name,
            path.name,
            repo_type=repo_type,
            revision=snapshot.commit,
            token=token,
            force_download=True,
        )
    except Exception as error:
        raise OSError(f"{damaged}, and downloading it again failed ({reason(error)}); try again later.") from error
    if not is_intact(path):
        raise OSError(
            f"{damaged}, also after a second download; check for a proxy or a disk that damages data, or download it "
            "on another machine and pass the folder."
        )


def reason(error: BaseException) -> str:
    """Describe an error in a few words on one line, without URLs, which can contain a signature."""
    if isinstance(error, HfHubHTTPError):
        message = (error.server_message or "").split("\n")[0]
        return f"{error.response.status_code} {message or error.response.reason_phrase}"
    message = textwrap.shorten(str(error), 200)
    return message if isinstance(error, TimeoutError) else f"{type(error).__name__}: {message}"


def _is_final(error: BaseException) -> bool:
    """Return whether another try can only fail again."""
    if is_offline_mode() or isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)):
        return True
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (401, 403, 404)
    return isinstance(error, OSError) and error.errno is not None  # of the disk, such as a full one


def _explain(
    error: BaseException, setting: str, option: str, repo_id: str, revision: str | None, repo_type: str
) -> str:
    page, flags = f"{constants.ENDPOINT}/{repo_id}", ""
    if repo_type != "model":
        page, flags = f"{constants.ENDPOINT}/{repo_type}s/{repo_id}", f" --repo-type {repo_type}"
    log_in = "log in with `hf auth login` or HF_TOKEN"
    if isinstance(error, HFValidationError):
        return f"{setting} is neither a folder nor the id of a Hub repository (owner/name); check the path."
    if isinstance(error, GatedRepoError):
        return f"{setting} is gated and this account has no access to it; ask for access at {page}, and {log_in}."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{setting} is neither a folder nor a repository of {constants.ENDPOINT} that this account can read; "
            f"check the name and, if it is private, {log_in}."
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{option}_revision={revision!r} is no branch, tag or commit of {setting}; choose one from {page}/commits."
        )
    if is_offline_mode():
        return (
            f"{setting} at revision {revision or 'main'!r} is not in the cache {constants.HF_HUB_CACHE}, and "
            f"HF_HUB_OFFLINE is set; download it with `hf download {repo_id}{flags}` on a machine with a network, or "
            "unset HF_HUB_OFFLINE."
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"{setting} was refused ({reason(error)}); {log_in}, with a token that may read it."
    return (
        f"{setting} could not be pulled from {constants.ENDPOINT} ({reason(error)}); try again later, or pass a local "
        "folder."
    )


__all__ = [
    "PROCESSOR_FILES",
    "Snapshot",
    "check_safetensors",
    "is_intact",
    "pull",
    "pull_model",
    "reason",
]
