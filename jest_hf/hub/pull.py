# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pull a model or a reference cache from the Hub: at one commit, without pickles, and no byte that was not pushed.

The Hub's client checks how many bytes it got and not which, and what lies in its cache is never looked at again. But
it names each file in the cache by the hash that the Hub tells of it: the sha256 of a large file, git's hash of a small
one. Comparing content and name costs no request, and works offline too.
"""

from __future__ import annotations

import hashlib
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging


logger = logging.get_logger(__name__)

WEIGHTS = ("model.safetensors", "model-*.safetensors", "adapter_model.safetensors")
# Configurations, processor and tokenizer.
PROCESSOR_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
WAITS = (1.0, 4.0)  # seconds before the second and third try, beyond what the client retries by itself


@dataclass(frozen=True)
class Snapshot:
    """
    A repository's files as of one commit.

    Args:
        name (`str`): `owner/name`; or the path, of files that are not from the Hub.
        folder (`pathlib.Path`): Where they lie in the client's cache; read only.
        commit (`str`, *optional*): 40 hexadecimal digits; `None` of files that are not from the Hub.
    """

    name: str
    folder: Path
    commit: str | None


def pull_model(repo_id: str, revision: str | None = None, option: str = "ref_model") -> Snapshot:
    """
    Download a model and its processor, as far as they are not cached, and verify every file.

    Args:
        repo_id (`str`): `owner/name`.
        revision (`str`, *optional*): Branch, tag or commit. Default: the head of `main`.
        option (`str`, *optional*, defaults to `"ref_model"`): What errors call the model.

    Raises:
        OSError: as [`pull`], and for a model without weights in safetensors.
    """
    snapshot = pull(repo_id, revision, option, (*WEIGHTS, *PROCESSOR_FILES))
    check_safetensors(snapshot.folder, WEIGHTS, f"{option}={repo_id!r}")
    return snapshot


def check_safetensors(folder: Path, names: Sequence[str], asked: str) -> None:
    """Refuse a folder with no file of these names, which may be patterns; `asked` is what errors call the model."""
    if not any(path for name in names for path in folder.glob(name)):
        raise OSError(
            f"{asked} has no weights in safetensors, and a pickle can run code when it is opened; convert it, with "
            "save_pretrained, and pass the folder or a repository with the result."
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
    """
    Download files of a repository, as far as they are not cached, and verify each. Its folders (checkpoints, other
    formats) are left alone.

    With `HF_HUB_OFFLINE` only the cache is asked; on a file system without links the cache names no hashes, and
    nothing can be verified.

    Args:
        repo_id (`str`): `owner/name`.
        revision (`str`, *optional*): Branch, tag or commit; `None` is the head of `main`.
        option (`str`): What errors call the repository.
        files (sequence of `str`): Patterns of the names of the files.
        repo_type (`str`, *optional*, defaults to `"model"`): Or `"dataset"`.
        token (`str`, *optional*): Default: the one that the client is logged in with.

    Raises:
        OSError: in one sentence, where the repository, the revision, the access, the connection or the cached copy is
            missing, and where a file is still damaged after it was downloaded again.
    """
    asked = f"{option}={repo_id!r}"
    for wait in (*WAITS, None):
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
        # The transport's exceptions are of one library or another, by the version of the client.
        except Exception as raised:
            # What the client finds missing in the cache it tried to find there because of something else.
            missing = isinstance(raised, LocalEntryNotFoundError)
            error = raised.__cause__ if missing and raised.__cause__ is not None else raised
            if wait is None or _is_final(error):
                raise OSError(_explain(error, asked, option, repo_id, revision, repo_type)) from raised
            logger.warning(f"{asked} could not be pulled ({reason(error)}); trying again in {wait:.0f} s.")
            time.sleep(wait)
    snapshot = Snapshot(repo_id, folder, folder.name)
    for path in sorted(folder.glob("*")):  # of no such file at all there is no folder
        if not is_intact(path):
            _mend(path, snapshot, asked, repo_type, token)
    return snapshot


def is_intact(path: Path) -> bool:
    """Whether a file of the client's cache is what its name there says: a sha256, or git's hash of a small file."""
    # One link, and no further: a blob can be a link to one that several repositories share, under another name.
    name = path.readlink().name if path.is_symlink() else ""
    if len(name) not in (40, 64):
        return True
    digest = hashlib.sha256() if len(name) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == name


def _mend(path: Path, snapshot: Snapshot, asked: str, repo_type: str, token: str | None) -> None:
    """Download a damaged file once more."""
    damaged = f"{asked}: the copy of {path.name} in {snapshot.folder} is not what the Hub holds"
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
            f"{damaged}, even after it was downloaded again; look for a proxy or a disk that damages data, or pull "
            "from another machine and pass the folder."
        )


def reason(error: BaseException) -> str:
    """What went wrong, in a few words of one line, without addresses (which can be signed)."""
    if isinstance(error, HfHubHTTPError):
        said = (error.server_message or "").split("\n")[0]
        return f"{error.response.status_code} {said or error.response.reason_phrase}"
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 200)}"


def _is_final(error: BaseException) -> bool:
    """Whether asking again can only give the same answer."""
    if is_offline_mode() or isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)):
        return True
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (401, 403, 404)
    return isinstance(error, OSError) and error.errno is not None  # the disk's, for instance that it is full


def _explain(error: BaseException, asked: str, option: str, repo_id: str, revision: str | None, repo_type: str) -> str:
    page, flags = f"{constants.ENDPOINT}/{repo_id}", ""
    if repo_type != "model":
        page, flags = f"{constants.ENDPOINT}/{repo_type}s/{repo_id}", f" --repo-type {repo_type}"
    log_in = "log in with `hf auth login` or HF_TOKEN"
    if isinstance(error, HFValidationError):
        return f"{asked} is neither a folder nor the id of a Hub repository (owner/name); check the path."
    if isinstance(error, GatedRepoError):
        return f"{asked} is gated and this account has no access to it; ask for access at {page}, and {log_in}."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{asked} is neither a folder nor a repository of {constants.ENDPOINT} that this account can see; check "
            f"the name and, if it is private, {log_in}."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{option}_revision={revision!r} is no branch, tag or commit of {asked}; choose one of {page}/commits."
    if is_offline_mode():
        return (
            f"{asked} at revision {revision or 'main'!r} is not in the cache {constants.HF_HUB_CACHE}, and "
            f"HF_HUB_OFFLINE is set; download it with `hf download {repo_id}{flags}` where there is a network, or "
            "unset it."
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"{asked} was refused ({reason(error)}); {log_in}, with a token that may read it."
    return (
        f"{asked} could not be pulled from {constants.ENDPOINT} ({reason(error)}); try again later, or pass a local "
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
