# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The files of an output folder that a push holds, and those that it does not."""

from __future__ import annotations

import glob
import os
import re
import shlex
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


# The files of output_dir that are pushed, by their paths, besides those of the processor.
PUBLIC = re.compile(
    r"README\.md|LICENSE(\.\w+)?|selection\.png|(adapter_|generation_)?config\.json"
    r"|(pytorch_|adapter_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|training_args\.bin|(all|train|eval|test|predict)_results\.json"
    r"|selections\.parquet(/part-\d+\.parquet)?"
)


def public_files(folder: str | os.PathLike[str], processor: Any = None) -> list[str]:
    """Return the files that a push of an output folder holds.

    Args:
        folder (`str` or `os.PathLike`): The output folder of a run.
        processor (*optional*): The run's processor, whose files are pushed too, whatever their names.

    Returns:
        `list[str]`: Paths relative to `folder`, of files that exist.
    """
    return listed(folder, processor_files(processor))


def processor_files(processor: Any) -> frozenset[str]:
    """Return the paths of the files that a processor is saved as; none without a processor."""
    with tempfile.TemporaryDirectory() as saved:
        if processor is not None:
            processor.save_pretrained(saved)
        return frozenset(path.relative_to(saved).as_posix() for path in Path(saved).rglob("*") if path.is_file())


def listed(folder: str | os.PathLike[str], names: Collection[str]) -> list[str]:
    """Return the files of a folder that are in `names` or in `PUBLIC`, as paths relative to the folder."""
    root = Path(folder)
    found = {path.relative_to(root).as_posix() for path in [*root.glob("*"), *root.glob("*/*")] if path.is_file()}
    return sorted(path for path in found if path in names or PUBLIC.fullmatch(path))


def upload_command(
    repo_id: str, folder: str | os.PathLike[str], public: Collection[str], revision: str | None = None
) -> str:
    """Return the command that uploads the public files of an output folder, and no other file that lies there now.

    Args:
        repo_id (`str`): Repository, `owner/name`.
        folder (`str` or `os.PathLike`): The output folder of a run.
        public (collection of `str`): [`public_files`] of the folder.
        revision (`str`, *optional*): The branch. Default: `main`.
    """
    top = {path.partition("/")[0] for path in public}
    hidden = [f"{PREFIX_CHECKPOINT_DIR}-*"]
    for path in sorted(Path(folder).glob("*")):
        if path.name not in top and not path.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
            hidden.append(glob.escape(path.name) + ("/*" if path.is_dir() else ""))
    words = ["hf", "upload", repo_id, str(folder)]
    words += [word for pattern in hidden for word in ("--exclude", pattern)]
    return shlex.join([*words, *(["--revision", revision] if revision else [])])


__all__ = ["PUBLIC", "listed", "processor_files", "public_files", "upload_command"]
