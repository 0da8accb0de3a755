# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole: a manifest in each says so, and a run resumes from no other.

`jest_manifest.json` says that a checkpoint is being written before any other file is there, and names all files with
sizes and hashes when the last one is on the disk: before an older checkpoint is removed, and before a push. A
checkpoint without a manifest, of an earlier version or of another Trainer, is accepted if its files can be read.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy
from transformers.utils import logging

from jest_hf.config import JESTConfig
from jest_hf.data.position import Position, load_position, save_position
from jest_hf.distributed import Ranks, ask_first_rank
from jest_hf.files import TEMPORARY, lock, replacing, unlock
from jest_hf.report.ledger import SelectionLedger


logger = logging.get_logger(__name__)

MANIFEST = "jest_manifest.json"
LOCK = ".checkpoints.lock"
ASIDE = "incomplete-"  # before the name of a checkpoint that cannot be resumed from
NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_BLOCK = 1 << 22


class Unusable(ValueError):
    """A checkpoint that is not whole; the message names the file."""


class Checkpoints:
    """
    Completes the checkpoints of a run, and finds the one to resume from.

    Args:
        args ([`JESTConfig`]): Options of the run.
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.
        ledger ([`SelectionLedger`], *optional*): The run's ledger, on the first process.

    Attributes:
        resumed_from (`str`, *optional*): The checkpoint that the run goes on from.
    """

    def __init__(self, args: JESTConfig, ranks: Ranks, ledger: SelectionLedger | None = None) -> None:
        self.args = args
        self.ranks = ranks
        self.ledger = ledger
        self.resumed_from: str | None = None

    @contextmanager
    def running(self, resume: str | bool | None, alone: bool = True) -> Iterator[str | bool | None]:
        """
        Keep folder and ledger for this run alone, and yield the checkpoint to resume from. A collective.

        The ledger is flushed at the end, also after an error or Ctrl-C.

        Args:
            resume (`str` or `bool`, *optional*): As in [`~transformers.Trainer.train`]; `True` is the newest whole
                checkpoint in `output_dir`. Newer ones that are not whole are renamed, with a warning.
            alone (`bool`, *optional*, defaults to `True`): Whether checkpoints lie in `output_dir` itself. The trials
                of a search have folders of their own there.

        Raises:
            ValueError: if another run saves checkpoints in the folder or writes to the ledger, and if the checkpoint
                is half-written or damaged.
        """
        try:
            checkpoint = ask_first_rank(self.ranks, lambda: self._open(resume, alone), self.args.device)
            self.resumed_from = str(checkpoint) if isinstance(checkpoint, str | os.PathLike) else None
            yield checkpoint
        finally:
            self.resumed_from = None
            if self.ledger is not None:
                self.ledger.close()
            if self.ranks.rank == 0:
                unlock(self._lock)

    @property
    def _lock(self) -> Path:
        return Path(str(self.args.output_dir)) / LOCK

    def _open(self, resume: str | bool | None, alone: bool) -> str | bool | None:
        folder = Path(str(self.args.output_dir))
        if alone and self.args.save_strategy != SaveStrategy.NO:
            folder.mkdir(parents=True, exist_ok=True)
            if not lock(self._lock):
                raise ValueError(
                    f"another run is saving checkpoints in {folder}; wait for its end, or set output_dir to another "
                    f"folder. If no run is alive, its host has kept the lock: delete {self._lock}."
                )
        if self.ledger is not None:
            self.ledger.acquire()
        found = [(int(match[1]), path) for path in folder.glob("*") if (match := NAME.fullmatch(path.name))]
        newest_first = [path for _, path in sorted(found, reverse=True)]
        reasons: dict[Path, str] = {}
        if resume is True and newest_first:
            resume = _newest_whole(newest_first, reasons)
        elif isinstance(resume, str | os.PathLike):
            check_checkpoint(resume)
            reasons = {path: str(_half_written(path)) for path in newest_first if _is_half_written(path)}
        for path, reason in reasons.items():
            logger.warning(f"{reason} It is kept as {_set_aside(path)}, and training resumes from {resume}.")
        return resume  # True without any checkpoint: the Trainer says so

    def checked(self, folder: str | None) -> str | None:
        """Return a checkpoint to load; a `ValueError` if it is half-written or damaged. A collective."""
        if folder is not None:
            ask_first_rank(self.ranks, lambda: check_checkpoint(folder), self.args.device)
        return folder

    @contextmanager
    def saving(self, state: TrainerState, run_folder: str) -> Iterator[None]:
        """
        Save a checkpoint of the step of `state` within this block, in which the Trainer writes `trainer_state.json`
        as the last file, then pushes, then removes older checkpoints: the manifest is completed before the last two.

        Raises:
            OSError: if the checkpoint cannot be written; what was written is left, as half-written.
        """
        if not self.args.should_save:
            yield
            return
        folder = Path(run_folder) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        save = state.save_to_json

        def save_and_complete(path: str) -> None:
            save(path)
            complete_checkpoint(folder)

        own = vars(state)  # on the object: the class is the Trainer's
        own["save_to_json"] = save_and_complete
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_manifest(folder, {"complete": False})
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise theirs for a full disk
            if (_read_manifest(folder) or {}).get("complete"):  # a push failed, or the removal of another one
                raise
            raise OSError(
                f"{folder} could not be saved ({str(error).splitlines()[0]}); make room if the disk is full, and go "
                "on from the checkpoint before it with resume_from_checkpoint=True."
            ) from error
        finally:
            own.pop("save_to_json", None)

    def finish_rank(self, folder: str, position: Position | None) -> None:
        """
        Write the last file of this rank, and wait until every rank has written its files. A collective.

        Args:
            folder (`str`): The checkpoint.
            position ([`~data.position.Position`], *optional*): Where this rank is in a stream.
        """
        if position is not None:
            save_position(position, folder, self.ranks.rank)
        self.ranks.gather_counts(0, self.args.device)

    def resumed_at(self) -> tuple[int, Position | None]:
        """
        Return the step that the run goes on after, and where this rank was in its stream, if the checkpoint says it.
        (0, `None`) for a run that goes on from no checkpoint. A collective.

        Raises:
            ValueError: if a stream was read with another number of ranks or loader workers.
        """
        if self.resumed_from is None:
            return 0, None
        step = int(_json(Path(self.resumed_from) / TRAINER_STATE_NAME)["global_step"])
        position = load_position(self.resumed_from, self.ranks, self.args.dataloader_num_workers, self.args.device)
        if position is None and self.ranks.rank == 0:
            logger.warning(
                f"{self.resumed_from} has no position of its run in the stream, as checkpoints of earlier "
                f"versions and of a torch IterableDataset: the rows of its first {step} super-batches are read again, "
                "undecoded."
            )
        return step, position


def _newest_whole(newest_first: list[Path], reasons: dict[Path, str]) -> str:
    """Return the first checkpoint that is whole, and put into `reasons` why those before it are not."""
    for path in newest_first:
        try:
            check_checkpoint(path)
        except Unusable as error:
            reasons[path] = str(error)
        else:
            return str(path)
    raise ValueError(
        "resume_from_checkpoint=True: no checkpoint is whole; start without it, or name one that is. "
        + " ".join(reasons.values())
    )


def complete_checkpoint(folder: str | os.PathLike[str]) -> None:
    """
    Write the manifest of a checkpoint, once all of its files are there and on the disk.

    Args:
        folder (`str` or `os.PathLike`): The checkpoint.
    """
    folder = Path(folder)
    files = {}
    for path in _files(folder):
        with open(path, "rb") as file:
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "xxh3_128": _hash(file)}
            with suppress(OSError):  # Windows syncs no file that is open for reading
                os.fsync(file.fileno())
    _write_manifest(folder, {"complete": True, "files": files})


def check_checkpoint(folder: str | os.PathLike[str]) -> None:
    """
    Check that a checkpoint is whole: all files of its manifest, byte for byte. Without a manifest, that its
    `trainer_state.json`, weights and optimizer states can be read.

    Args:
        folder (`str` or `os.PathLike`): The checkpoint.

    Raises:
        ValueError: for a checkpoint that is half-written or damaged; the message names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Unusable(f"resume_from_checkpoint={str(folder)!r}: there is no such folder.")
    manifest = _read_manifest(folder)
    if manifest is None:
        _check_without_manifest(folder)
    elif not manifest.get("complete"):
        raise _half_written(folder)
    else:
        try:
            files = {folder / name: (about["bytes"], about["xxh3_128"]) for name, about in manifest["files"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder / MANIFEST, "it does not have a size and a hash for each file") from error
        for path, (n_bytes, digest) in files.items():
            _check_file(path, n_bytes, digest)


def _check_file(path: Path, n_bytes: int, digest: str) -> None:
    if not path.is_file():
        raise Unusable(f"{path} is missing: its checkpoint was saved with it.")
    if (size := path.stat().st_size) != n_bytes:
        raise _damaged(path, f"it has {size} bytes, and had {n_bytes} when it was saved")
    with open(path, "rb") as file:
        if _hash(file) != digest:
            raise _damaged(path, "its contents are not those that were saved")


def _check_without_manifest(folder: Path) -> None:
    """Check what can be checked of a checkpoint that another version or another Trainer has saved."""
    state = folder / TRAINER_STATE_NAME
    if not state.is_file():  # the Trainer writes it last
        raise _half_written(folder)
    saved = _json(state)
    callbacks = saved.get("stateful_callbacks") or {}
    if isinstance(ours := callbacks.get("RunStatistics"), dict) and ours["attributes"].get("manifest"):
        raise Unusable(f"{folder / MANIFEST} is missing: its checkpoint was saved with it.")
    for path in _files(folder):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):  # compares the size with the header
                    pass
            except (SafetensorError, OSError) as error:
                raise _damaged(path, str(error)) from error
        elif path.suffix in (".pt", ".pth", ".bin"):
            _check_pickle(path)
        elif path.name.endswith(".index.json"):
            for name in sorted(set(_json(path).get("weight_map", {}).values())):
                if not (folder / name).is_file():
                    raise Unusable(f"{folder / name} is missing: {path.name} names it.")
        elif path.suffix == ".json":
            _json(path)


def _check_pickle(path: Path) -> None:
    """Check a file of `torch.save`: a zip with checksums, or a pickle of an old torch, which has none."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                if (entry := file.testzip()) is not None:
                    raise _damaged(path, f"the checksum of its entry {entry} is wrong")
            return
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise _damaged(path, str(error)) from error
    with open(path, "rb") as file:
        if file.read(1) != b"\x80":
            raise _damaged(path, "it is no file of torch.save")


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def _files(folder: Path) -> list[Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if path.name != MANIFEST and not path.name.endswith(TEMPORARY)]


def _hash(file: Any) -> str:
    digest = xxhash.xxh3_128()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    with replacing(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=1) + "\n").encode())


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    return _json(path) if path.is_file() else None


def _set_aside(folder: Path) -> str:
    """Rename a checkpoint, so that neither a resume nor the Trainer's `save_total_limit` counts it as one."""
    number, name = 1, ASIDE + folder.name
    while folder.with_name(name).exists():
        number += 1
        name = f"{ASIDE}{folder.name}-{number}"
    os.replace(folder, folder.with_name(name))
    return name


def _is_half_written(folder: Path) -> bool:
    try:
        return (_read_manifest(folder) or {}).get("complete") is False
    except Unusable:
        return False


def _half_written(folder: Path) -> Unusable:
    return Unusable(f"{folder} is half-written: its run ended while it was saving.")


def _damaged(path: Path, reason: str) -> Unusable:
    return Unusable(f"{path} is damaged ({reason}); resume from another checkpoint.")


__all__ = ["MANIFEST", "Checkpoints", "check_checkpoint", "complete_checkpoint"]
