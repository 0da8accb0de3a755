# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Load a model by name, with its processor: from a folder, or from the Hub at one commit and verified."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from jest_hf.distributed import Ranks, ask_first_rank
from jest_hf.hub.pull import PROCESSOR_FILES, Snapshot, check_safetensors, pull, pull_model
from jest_hf.models.load import check_loaded, load_model, load_processor
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
    option: str = "ref_model",
) -> tuple[PreTrainedModel, Any]:
    """Load and freeze a reference.

    Args:
        ref_model (`str` or [`~transformers.PreTrainedModel`]): A Hub id, a local path, or a model, which is frozen
            in place. An id or path may be that of an adapter: its base model is then loaded first.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id. Default: `main`.
        processor (*optional*): The reference's processor. Default: for an id or path, the one stored with the model at
            the same commit; for a model, `None`: the reference reads what the learner reads.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The ranks that load the same reference, which makes the
            call a collective; see [`locate_reference`]. Default: this process alone.
        device (`torch.device`, *optional*, defaults to `"cpu"`): The device on which ranks exchange tensors.
        option (`str`, *optional*, defaults to `"ref_model"`): Name of the option in error messages.

    Returns:
        The model and its processor. The model is whole, also under ZeRO-3, in eval mode and without gradients. Its
        weights are read from safetensors only, since a pickle can run code. For a Hub id, `model.config._name_or_path`
        is the id and `model.config._commit_hash` the commit.

    Raises:
        ValueError: for a revision of a folder or of a model object.
        OSError: for a model that cannot be pulled ([`~jest_hf.hub.pull.pull_model`]) or read.
    """
    if isinstance(ref_model, str):
        snapshot = locate_reference(ref_model, revision, ranks=ranks, device=device, option=option)
        if processor is None:
            processor = load_processor(snapshot.folder, f"{option}={ref_model!r}")
        with built_whole():
            model = _read(snapshot, ranks, device, option)
        _name(model, snapshot)
        return model.eval().requires_grad_(False), processor
    if revision is not None:
        raise ValueError(
            f"ref_model_revision={revision!r} names a revision of a Hub repository, but ref_model is a model object; "
            "pass the repository id as ref_model, or leave the revision out."
        )
    return ref_model.eval().requires_grad_(False), processor


def load_learner(
    name: str,
    processor: Any | None = None,
    *,
    option: str = "model",
    ranks: Ranks | None = None,
    device: torch.device | str = "cpu",
) -> tuple[PreTrainedModel, Any]:
    """Load a model to train, in float32, with its processor; files of a Hub id are of one commit, and verified.

    Args:
        name (`str`): Hub id or local path.
        processor, ranks, device: As in [`load_reference`].
        option (`str`, *optional*, defaults to `"model"`): Name of the option in error messages.

    Returns:
        The model and its processor.

    Raises:
        ValueError: as [`~jest_hf.models.load_model`].
        OSError: for a model that cannot be pulled ([`~jest_hf.hub.pull.pull_model`]) or read.
    """
    snapshot = locate_reference(name, ranks=ranks, device=device, option=option)
    # float32: in fewer bits, small steps round away.
    model = load_model(snapshot.folder, f"{option}={name!r}", dtype=torch.float32)
    _name(model, snapshot)
    return model, load_processor(snapshot.folder, f"{option}={name!r}") if processor is None else processor


def locate_reference(
    ref_model: str,
    revision: str | None = None,
    *,
    weights: bool = True,
    ranks: Ranks | None = None,
    device: torch.device | str = "cpu",
    option: str = "ref_model",
) -> Snapshot:
    """Return the folder of a reference's files; those of a Hub id are downloaded and verified first.

    With several ranks, the first pulls and the others then pull the same commit: a push to the repository during the
    start cannot give two ranks different weights, and the ranks on the first one's host read its download.

    Args:
        ref_model (`str`): A Hub id or a local path, of a model or an adapter.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id. Default: `main`.
        weights (`bool`, *optional*, defaults to `True`): Whether to download the weights too.
        ranks, device: As in [`load_reference`].
        option (`str`, *optional*, defaults to `"ref_model"`): Name of the option in error messages.

    Returns:
        [`~jest_hf.hub.pull.Snapshot`]: the folder and the commit; the commit of a local path is `None`.

    Raises:
        ValueError: for a revision of a folder.
        OSError: for a model that cannot be pulled ([`~jest_hf.hub.pull.pull_model`]).
    """
    ranks = ranks or Ranks()
    found = ask_first_rank(ranks, lambda: _locate(ref_model, revision, weights, option), device)
    return found if ranks.rank == 0 else _locate(ref_model, found.commit, weights, option)


def _locate(ref_model: str, revision: str | None, weights: bool, option: str) -> Snapshot:
    if not Path(ref_model).is_dir():
        if weights:
            return pull_model(ref_model, revision, option)
        return pull(ref_model, revision, option, PROCESSOR_FILES)
    if revision is not None:
        raise ValueError(
            f"ref_model_revision={revision!r} names a revision of a Hub repository, but ref_model={ref_model!r} is a "
            "folder; leave the revision out, or rename the folder if you mean the repository."
        )
    return Snapshot(ref_model, Path(ref_model), None)


def locate_adapter(
    adapter: str,
    revision: str | None = None,
    *,
    ranks: Ranks | None = None,
    device: torch.device | str = "cpu",
) -> Snapshot:
    """Return the folder of the files of an adapter, as [`locate_reference`] does for a model.

    Args:
        adapter (`str`): A Hub id or a local path of an adapter.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id. Default: `main`.
        ranks, device: As in [`load_reference`].

    Raises:
        ValueError: for a repository or folder without an adapter, and for a revision of a folder.
        OSError: for an adapter that cannot be pulled, or is not in safetensors.
    """
    snapshot = locate_reference(adapter, revision, ranks=ranks, device=device)
    if not (snapshot.folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"reference='adapter' needs an adapter, and ref_model={adapter!r} has no {ADAPTER_CONFIG}; set ref_model "
            "to an adapter, or set reference='model'."
        )
    check_safetensors(snapshot.folder, [ADAPTER_WEIGHTS], f"ref_model={adapter!r}")
    return snapshot


def _name(model: PreTrainedModel, snapshot: Snapshot) -> None:
    """Let a model have the name and the commit that it was pulled by, not the folder of this machine's cache: model
    cards, and the configuration of an adapter on it, name it."""
    model.config._name_or_path, model.config._commit_hash = snapshot.name, snapshot.commit
    model.name_or_path = snapshot.name


def _read(
    snapshot: Snapshot, ranks: Ranks | None, device: torch.device | str, option: str = "ref_model"
) -> PreTrainedModel:
    """Load the model in a folder, or the adapter in it on its base model."""
    folder = snapshot.folder
    setting = f"{option}={snapshot.name!r}"
    if not (folder / ADAPTER_CONFIG).is_file():
        return load_model(folder, setting, use_safetensors=True)
    check_safetensors(folder, [ADAPTER_WEIGHTS], setting)
    # Not left to transformers, which would pull the base model without verifying it.
    model = _read(locate_base(folder, ranks=ranks, device=device), ranks, device)
    model.load_adapter(str(folder))
    check_adapter(folder, model.get_adapter_state_dict(), setting)
    return model


def check_adapter(folder: Path, loaded: Iterable[str], setting: str) -> None:
    """Refuse an adapter whose file lacks tensors that the model has for the adapter.

    Args:
        folder (`Path`): Folder of the adapter.
        loaded (iterable of `str`): Names of the adapter's tensors in the model.
        setting (`str`): Option and value in error messages.

    Raises:
        ValueError: as [`~jest_hf.models.load.check_loaded`].
    """
    prefix = "base_model.model."
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        saved = {name.removeprefix(prefix) for name in file.keys()}  # noqa: SIM118  # an open file is no dict
    wanted = {name.removeprefix(prefix) for name in loaded}
    check_loaded(wanted - saved, saved - wanted, setting)


def locate_base(folder: Path, **options: Any) -> Snapshot:
    """Return the folder of the base model of an adapter; the options are those of [`locate_reference`]."""
    about = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return locate_reference(about["base_model_name_or_path"], about.get("revision"), **options)


__all__ = [
    "check_adapter",
    "load_learner",
    "load_reference",
    "locate_adapter",
    "locate_base",
    "locate_reference",
]
