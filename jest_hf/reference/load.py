# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The frozen reference model: load it by Hub id or path, with its own processor, and keep it from ever learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, PreTrainedModel

from jest_hf.distributed import Ranks, ask_first_rank
from jest_hf.hub.pull import PROCESSOR_FILES, Snapshot, check_safetensors, pull, pull_model
from jest_hf.models.load import load_model
from jest_hf.models.sharding import built_whole


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_reference(
    ref_model: str | PreTrainedModel,
    revision: str | None = None,
    processor: Any | None = None,
    *,
    ranks: Ranks | None = None,
    device: torch.device | str = "cpu",
) -> tuple[PreTrainedModel, Any]:
    """
    Load and freeze a reference.

    Args:
        ref_model (`str` or [`~transformers.PreTrainedModel`]): a Hub id, a local path, or a model, which is frozen
            in place. An id or path can be that of an adapter: the model that it names as its base is loaded first.
        revision (`str`, *optional*): branch, tag or commit; only with a Hub id.
        processor (*optional*): the reference's processor. Default: for an id or path the one stored beside the model,
            as of the same commit; for a model `None`, which means that it reads what the learner reads.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): who loads the same reference; a collective, see
            [`locate_reference`]. `None` is this process alone.
        device (`torch.device`, *optional*, defaults to `"cpu"`): where tensors have to be to travel between ranks.

    Returns:
        The model (whole also under ZeRO-3, eval mode, no gradients; weights are read from safetensors alone, since a
        pickle runs code) and its processor. For a Hub id, `model.config._name_or_path` is the id and
        `model.config._commit_hash` the commit, whatever the revision was called.

    Raises:
        ValueError: for a revision of what is not on the Hub.
        OSError: for a model that cannot be pulled ([`~jest_hf.hub.pull.pull_model`]) or read.
    """
    if isinstance(ref_model, str):
        snapshot = locate_reference(ref_model, revision, ranks=ranks, device=device)
        if processor is None:
            processor = AutoProcessor.from_pretrained(snapshot.folder)
        with built_whole():
            model = _read(snapshot, ranks, device)
        model.config._name_or_path, model.config._commit_hash = snapshot.name, snapshot.commit
        return model.eval().requires_grad_(False), processor
    if revision is not None:
        raise ValueError(
            f"ref_model_revision={revision!r} names a revision of a Hub repository, but ref_model is a model object; "
            "pass the repository id as ref_model, or drop the revision."
        )
    return ref_model.eval().requires_grad_(False), processor


def locate_reference(
    ref_model: str,
    revision: str | None = None,
    *,
    weights: bool = True,
    ranks: Ranks | None = None,
    device: torch.device | str = "cpu",
) -> Snapshot:
    """
    Where a reference's files are, after pulling and verifying those of a Hub id.

    Of several ranks the first pulls, and the others then ask for the commit that it got: a push in the middle of a
    start gives no two of them different weights, and those on its host find everything on the disk.

    Args:
        ref_model (`str`): A Hub id or a local path, of a model or an adapter.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id.
        weights (`bool`, *optional*, defaults to `True`): Whether the weights are needed too.
        ranks, device: As in [`load_reference`].

    Returns:
        [`~jest_hf.hub.pull.Snapshot`]: the folder, and the commit, of which a local folder has none.
    """
    ranks = ranks or Ranks()
    found = ask_first_rank(ranks, lambda: _locate(ref_model, revision, weights), device)
    return found if ranks.rank == 0 else _locate(ref_model, found.commit, weights)


def _locate(ref_model: str, revision: str | None, weights: bool) -> Snapshot:
    if not Path(ref_model).is_dir():
        return pull_model(ref_model, revision) if weights else pull(ref_model, revision, "ref_model", PROCESSOR_FILES)
    if revision is not None:
        raise ValueError(
            f"ref_model_revision={revision!r} names a revision of a Hub repository, but ref_model={ref_model!r} is a "
            "folder; drop the revision, or rename the folder if the repository was meant."
        )
    return Snapshot(ref_model, Path(ref_model), None)


def locate_adapter(
    adapter: str,
    revision: str | None = None,
    *,
    ranks: Ranks | None = None,
    device: torch.device | str = "cpu",
) -> Snapshot:
    """
    Where the files of an adapter are that is to be the reference; arguments as those of [`locate_reference`].

    Raises:
        ValueError: for what is no adapter.
        OSError: for an adapter that cannot be pulled, or is not in safetensors.
    """
    snapshot = locate_reference(adapter, revision, ranks=ranks, device=device)
    if not (snapshot.folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"reference='adapter' needs an adapter, and ref_model={adapter!r} has no {ADAPTER_CONFIG}; name an "
            "adapter, or set reference='model'."
        )
    check_safetensors(snapshot.folder, [ADAPTER_WEIGHTS], f"ref_model={adapter!r}")
    return snapshot


def _read(snapshot: Snapshot, ranks: Ranks | None, device: torch.device | str) -> PreTrainedModel:
    """The model in a folder, or the adapter in it on its base."""
    folder = snapshot.folder
    if not (folder / ADAPTER_CONFIG).is_file():
        return load_model(folder, use_safetensors=True)
    check_safetensors(folder, [ADAPTER_WEIGHTS], f"ref_model={snapshot.name!r}")
    # Not left to transformers, which would pull the base unverified.
    model = _read(locate_base(folder, ranks=ranks, device=device), ranks, device)
    model.load_adapter(str(folder))
    return model


def locate_base(folder: Path, **options: Any) -> Snapshot:
    """Where the model is that the adapter in a folder was made for; options as those of [`locate_reference`]."""
    about = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return locate_reference(about["base_model_name_or_path"], about.get("revision"), **options)


__all__ = ["load_reference", "locate_adapter", "locate_base", "locate_reference"]
