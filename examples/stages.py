# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A stage of a chain: a folder with a record of the settings that made its files, and of where they were published."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from jest_hf.hub import CuratedSummary, curated_card, push_card
from jest_hf.hub.retries import try_repeatedly
from jest_hf.report import format_table


RECORD = "_stage.json"  # files whose names start with "_" are not pushed


class Stage:
    """A folder and the settings that identify it.

    Args:
        folder (`Path`): The folder; it is created if it does not exist.
        settings (`dict`): All settings on which the results of the stage depend, as JSON. They are recorded before the
            stage begins, so that an interrupted stage is not continued with other settings.
        writes (`bool`, *optional*, defaults to `True`): Whether this process writes the record; one of several does.

    Raises:
        ValueError: if the folder was made with other settings; the message names the first difference.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], writes: bool = True) -> None:
        self.folder = folder
        settings = json.loads(json.dumps(settings))
        path = folder / RECORD
        if path.exists():
            self.reload()
            if changed := difference(self.record["settings"], settings):
                raise ValueError(
                    f"the stage in {folder} was made with other settings ({changed}); choose another output_dir, or "
                    "remove this folder and those of the stages after it."
                )
        else:
            self.record = {"settings": settings, "result": None, "published": None}
            if writes:
                folder.mkdir(parents=True, exist_ok=True)
                self._write()

    @property
    def done(self) -> bool:
        """Whether the stage is finished."""
        return self.record["result"] is not None

    @property
    def result(self) -> dict[str, Any]:
        """The results that `finish` recorded."""
        return self.record["result"] or {}

    @property
    def published(self) -> tuple[str, str] | None:
        """Repository and commit, once the stage is on the Hub."""
        return self.record["published"] and tuple(self.record["published"])

    @property
    def digest(self) -> str:
        """A hash of the settings; the stages after this one include it in their settings."""
        return hashlib.sha256(json.dumps(self.record["settings"], sort_keys=True).encode()).hexdigest()[:16]

    def finish(self, **result: Any) -> None:
        """Record that the stage is finished, with its results."""
        self.record["result"] = result
        self._write()

    def note_published(self, repo: str, commit: str) -> None:
        """Record where the stage was published."""
        self.record["published"] = [repo, commit]
        self._write()

    def reload(self) -> None:
        """Read the record again, after another process wrote it."""
        self.record = json.loads((self.folder / RECORD).read_text())

    def _write(self) -> None:
        with replacing(self.folder / RECORD) as path:
            path.write_text(json.dumps(self.record, indent=1) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix, and move its file to `path` when the block ends."""
    temporary = path.with_name(f"_writing-{path.name}")
    yield temporary
    os.replace(temporary, path)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Return the first setting that differs, as a part of a sentence; `None` if none differs."""
    ours, theirs = dict(_flat(old)), dict(_flat(new))
    for name in ours | theirs:
        if name not in theirs or name not in ours or ours[name] != theirs[name]:
            return f"{name} was {ours.get(name, 'not set')!r} and is {theirs.get(name, 'not set')!r}"
    return None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def table_of(stages: Sequence[Stage]) -> str:
    """Return a table with the results of each stage in a row."""
    rows = []
    for stage in stages:
        result = stage.result
        quality = [f"{result[one]:.3f}" if one in result else "" for one in ("eval_R@5", "test_R@1", "test_R@5")]
        trained = f"{result['examples_trained']:,}" if "examples_trained" in result else ""
        flops = f"{result['flops']:.2e}" if result.get("flops") else ""
        rows.append([stage.folder.name, result.get("rows", ""), trained, flops, *quality])
    headers = ["stage", "rows kept", "examples trained", "FLOPs", "validation R@5", "test R@1", "test R@5"]
    return format_table(headers, rows)


def publish_folder(folder: Path, repo: str, private: bool | None = None) -> str:
    """Push a saved model with its card, without checkpoints, and return the commit.

    Raises:
        OSError: if the Hub refuses.
    """
    api = HfApi()
    try_repeatedly(api.create_repo, repo, private=private, exist_ok=True)
    ignored = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*"]
    return try_repeatedly(api.upload_folder, repo_id=repo, folder_path=folder, ignore_patterns=ignored).oid


def publish_data(rows: datasets.Dataset, repo: str, summary: CuratedSummary, private: bool | None = None) -> str:
    """Push a curated data set and its card, and return the commit.

    Raises:
        OSError: if the Hub refuses.
    """
    try_repeatedly(rows.push_to_hub, repo, private=private)
    return try_repeatedly(push_card, curated_card(summary), repo)


__all__ = ["Stage", "difference", "publish_data", "publish_folder", "replacing", "table_of"]
