# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The frozen reference model: load it by Hub id or path, with its own processor, and keep it from ever learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoProcessor, PreTrainedModel

from jest_hf.hub.pull import Snapshot, pull_model
from jest_hf.models.sharding import built_whole


ADAPTER_CONFIG = "adapter_config.json"


def load_reference(
    ref_model: str | PreTrainedModel, revision: str | None = None, processor: Any | None = None
) -> tuple[PreTrainedModel, Any | None]:
    """
    Load and freeze a reference.

    Args:
        ref_model (`str` or [`~transformers.PreTrainedModel`]): a Hub id, a local path, or a model, which is frozen
            in place. An id or path can be that of an adapter: the model that it names as its base is loaded first.
        revision (`str`, *optional*): branch, tag or commit; only with a Hub id.
        processor (*optional*): the reference's processor. Default: for an id or path the one stored beside the model,
            as of the same commit; for a model `None`, which means that it reads what the learner reads.

    Returns:
        The model (whole also under ZeRO-3, eval mode, no gradients; weights are read from safetensors alone, since a
        pickle runs code) and its processor. For a Hub id, `model.config._name_or_path` is the id and
        `model.config._commit_hash` the commit, whatever the revision was called.

    Raises:
        ValueError: for a revision of what is not on the Hub.
        OSError: for a model that cannot be pulled ([`~jest_hf.hub.pull.pull_model`]) or read.
    """
    if isinstance(ref_model, str):
        snapshot = locate_reference(ref_model, revision)
        if processor is None:
            processor = AutoProcessor.from_pretrained(snapshot.folder)
        with built_whole():
            model = _read(snapshot.folder)
        model.config._name_or_path, model.config._commit_hash = ref_model, snapshot.commit or None
        return model.eval().requires_grad_(False), processor
    if revision is not None:
        raise ValueError(
            f"ref_model_revision={revision!r} names a revision of a Hub repository, but ref_model is a model object; "
            "pass the repository id as ref_model, or drop the revision."
        )
    return ref_model.eval().requires_grad_(False), processor


def locate_reference(ref_model: str, revision: str | None) -> Snapshot:
    """
    Where a reference's files are, after pulling and verifying those of a Hub id.

    Returns:
        [`~jest_hf.hub.pull.Snapshot`]: the folder, and the commit; that of a local folder is empty.
    """
    if not Path(ref_model).is_dir():
        return pull_model(ref_model, revision)
    if revision is not None:
        raise ValueError(
            f"ref_model_revision={revision!r} names a revision of a Hub repository, but ref_model={ref_model!r} is a "
            "folder; drop the revision, or rename the folder if the repository was meant."
        )
    return Snapshot(Path(ref_model), "")


def _read(folder: Path) -> PreTrainedModel:
    """The model in a folder, or the adapter in it on its base."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return AutoModel.from_pretrained(folder, use_safetensors=True)
    about = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    # Not left to transformers, which would pull the base unverified.
    model = _read(locate_reference(about["base_model_name_or_path"], about.get("revision")).folder)
    model.load_adapter(str(folder))
    return model


__all__ = ["load_reference", "locate_reference"]
