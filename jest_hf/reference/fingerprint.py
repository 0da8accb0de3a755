# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a reference cache is of: which weights, reading in which way, which data.

Each description is a plain dict that goes into the cache's manifest, and a run that wants to use the cache describes
its own reference and data in the same way. [`difference`] then names the first thing that is not the same. None of
this loads weights: a reference is known by its commit on the Hub, or by the sha256 of its tensors.

A data set is known by its number of rows, by a sample of its rows (image files and captions, byte for byte) and, where
the captions can be read without the images, by all captions. The fingerprint that `datasets` keeps would not do: it is
random after a transform that cannot be hashed, differs between the ways to load the same files, and does not exist for
a stream or a list. What goes unseen is an image that was replaced between two rows of the sample.
"""

from __future__ import annotations

import hashlib
import json
import numbers
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor, PretrainedConfig, PreTrainedModel

from jest_hf.data.captions import CAPTION_COLUMNS, BrokenCaption, tokenizer_definition, usable_captions
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.rows import Rows
from jest_hf.hub.pull import Snapshot
from jest_hf.images.pixels import BrokenImage, decode_image
from jest_hf.models import base_model, has_adapter
from jest_hf.reference.load import ADAPTER_CONFIG, locate_base, locate_reference


SAMPLED_ROWS = 256
KEY_COLUMN = "example_id"
FULL_VIEW = "full"
SAME_MODEL = ("reference.weights", "reference.config")
# Of a configuration: what says where it came from, and not what the model computes.
_PROVENANCE = ("architectures", "dtype", "torch_dtype", "transformers_version")


def identify_reference(ref_model: str | nn.Module, revision: str | None = None) -> dict[str, Any]:
    """
    Which reference this is.

    Args:
        ref_model (`str` or `torch.nn.Module`): A Hub id, a local path, or a whole model; of a `peft.PeftModel` what it
            does not train: the backbone and the reference's adapter.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id.

    Returns:
        `repo` and `commit` of a Hub id (as it lies in the local cache where `HF_HUB_OFFLINE` is set), and of an
        adapter its `base`, identified in the same way; `weights` and `config`, two sha256, of a path or a model. The
        same model gives the same two either way, but for a path to an adapter, which is known by its own weights and
        by its base.

    Raises:
        ValueError: for a model whose weights an engine has partitioned, and a path without safetensors.
        OSError: for a Hub id that cannot be pulled.
    """
    if isinstance(ref_model, str):
        return _identify(locate_reference(ref_model, revision, weights=False))
    weights = dict(ref_model.named_parameters())
    if has_adapter(ref_model):
        weights = {name: weight for name, weight in weights.items() if not weight.requires_grad}
    if any(weight.numel() == 0 for weight in weights.values()):
        raise ValueError(
            "the reference's weights are partitioned, so they cannot be told from others; identify it before it "
            "is sharded, or pass its id or path as ref_model."
        )
    config = base_model(ref_model).config
    return {"weights": _hash_weights(sorted(weights.items())), "config": _hash_config(config)}


def _identify(snapshot: Snapshot) -> dict[str, Any]:
    is_adapter = (snapshot.folder / ADAPTER_CONFIG).is_file()
    base = {"base": _identify(locate_base(snapshot.folder, weights=False))} if is_adapter else {}
    if snapshot.commit is not None:
        return {"repo": snapshot.name, "commit": snapshot.commit, **base}
    files = sorted(snapshot.folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"no .safetensors is in {snapshot.name}; save the reference with save_pretrained.")
    if is_adapter:
        about = json.loads((snapshot.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        config = hashlib.sha256(json.dumps([about, base], sort_keys=True).encode()).hexdigest()
    else:
        config = _hash_config(AutoConfig.from_pretrained(snapshot.folder))
    return {"weights": _hash_weights(_tensors(files)), "config": config}


def describe_reference(
    ref_model: str | PreTrainedModel | None,
    revision: str | None,
    ref_processor: Any | None,
    collator: JESTDataCollator,
) -> dict[str, dict[str, Any]]:
    """
    What a run that is given a cache says of its reference, which it does not load.

    Args:
        ref_model (`str` or [`~transformers.PreTrainedModel`], *optional*): As of [`load_reference`].
        revision (`str`, *optional*): Branch, tag or commit of a Hub id.
        ref_processor (*optional*): The reference's processor. Default: as without a cache that of the collator, the
            one stored with a Hub id or path, or the learner's.
        collator ([`JESTDataCollator`]): That of the run.

    Returns:
        Sections for [`ReferenceCache.check`]: `reading`, and `reference` where `ref_model` is given.
    """
    known = {}
    if isinstance(ref_model, str):
        snapshot = locate_reference(ref_model, revision, weights=False)
        known["reference"] = _identify(snapshot)
        if ref_processor is None and collator.ref_processor is None:
            ref_processor = AutoProcessor.from_pretrained(snapshot.folder)
    elif ref_model is not None:
        known["reference"] = identify_reference(ref_model)
    if collator.ref_processor is None:
        collator = collator.with_reference(ref_processor)
    return {**known, "reading": describe_reading(collator)}


def describe_reading(collator: JESTDataCollator) -> dict[str, Any]:
    """How the reference of a run with this collator reads: image geometry, normalisation, text settings, view."""
    geometry = collator.geometries.get("ref_", collator.geometries[""])
    text = collator.texts.get("ref_", collator.texts[""])
    images = (collator.ref_processor or collator.processor).image_processor
    normalised = images.do_normalize
    return {
        "image": {"kind": type(geometry).__name__, **asdict(geometry)},
        "rescale_factor": images.rescale_factor if images.do_rescale else None,
        "mean": list(images.image_mean) if normalised else None,
        "std": list(images.image_std) if normalised else None,
        "tokenizer": _hash_tokenizer(text.tokenizer),
        "max_length": text.max_length,
        "lower_case": text.lower_case,
        "view": FULL_VIEW,
    }


def describe_data(rows: Rows, collator: JESTDataCollator) -> dict[str, Any]:
    """Which data these are: the columns that are read, the number of rows, all captions, and a sample of rows."""
    if len(rows) == 0:
        raise ValueError("the data set has no rows; pass one that has at least one.")
    caption_column = _caption_column(rows[0], collator)
    known = {}
    if _has_plain_columns(rows.dataset):
        known["captions"] = _hash_captions(rows.dataset, caption_column)
    if (keys := own_keys(rows)) is not None:
        known["keys"] = hashlib.sha256(keys.tobytes()).hexdigest()
    sample = np.unique(np.linspace(0, len(rows) - 1, SAMPLED_ROWS).round().astype(np.int64)).tolist()
    return {
        "image_column": collator.image_column,
        "caption_column": caption_column,
        "n_rows": len(rows),
        **known,
        "row": {str(index): _hash_row(rows[index], collator.image_column, caption_column) for index in sample},
    }


def describe_row(row: Mapping[str, Any], number: int, collator: JESTDataCollator) -> dict[str, Any]:
    """What one row, known to be this one of the data, says about them: as much as can be known of a stream."""
    caption_column = _caption_column(row, collator)
    return {
        "image_column": collator.image_column,
        "caption_column": caption_column,
        "row": {str(number): _hash_row(row, collator.image_column, caption_column)},
    }


def own_keys(rows: Rows) -> np.ndarray | None:
    """The rows' own names, int64 `[N]`: their integer column `example_id`; `None` where there is none."""
    dataset = rows.dataset
    if not _has_plain_columns(dataset) or KEY_COLUMN not in dataset.column_names:
        return None
    column = dataset.select_columns([KEY_COLUMN]).with_format("numpy")[:][KEY_COLUMN]
    return column.astype(np.int64) if np.issubdtype(column.dtype, np.integer) else None


def own_key(row: Mapping[str, Any]) -> int | None:
    """The name that a row of a stream has of its own: its integer `example_id`."""
    key = row.get(KEY_COLUMN)
    return int(key) if isinstance(key, numbers.Integral) else None


def difference(cached: Mapping[str, Any], present: Mapping[str, Mapping[str, Any]]) -> str | None:
    """
    The first thing that both descriptions name and do not agree about, as a part of a sentence; `None` if they agree.
    References with the same weights are the same, under whatever name and commit.

    Args:
        cached (`Mapping`): A manifest.
        present (`Mapping`): What is compared with it: some of its sections, with some or all of their fields.
    """
    for section, fields in json.loads(json.dumps(present)).items():
        ours, theirs = dict(_flat(fields, section)), dict(_flat(cached[section], section))
        common = [name for name in ours if name in theirs]
        if section == "reference" and not common:
            return f"its reference is {_named(cached[section])}, and here it is {_named(fields)}"
        if all(name in common and ours[name] == theirs[name] for name in SAME_MODEL):
            continue  # whichever commits it is of
        for name in common:
            if ours[name] != theirs[name]:
                return f"{name} is {theirs[name]!r} there, and here it is {ours[name]!r}"
    return None


def _flat(fields: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def _named(reference: Mapping[str, Any]) -> str:
    if "commit" in reference:
        return f"{reference['repo']}@{reference['commit']}"
    return f"a model whose weights have the sha256 {reference['weights']}"


def _caption_column(row: Mapping[str, Any], collator: JESTDataCollator) -> str:
    collator([row])  # which knows best what to say of a column that is missing
    return collator.caption_column or next(name for name in CAPTION_COLUMNS if name in row)


def _has_plain_columns(dataset: Any) -> bool:
    """Whether one column can be read without the others."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"


def _hash_captions(dataset: datasets.Dataset, column: str) -> str:
    digest = hashlib.sha256()
    for batch in dataset.select_columns([column]).iter(batch_size=1000):
        digest.update(json.dumps(batch[column], default=repr).encode())
    return digest.hexdigest()


def _hash_row(row: Mapping[str, Any], image_column: str, caption_column: str) -> str:
    try:
        captions = usable_captions(row[caption_column])
    except BrokenCaption:
        captions = []
    return hashlib.sha256(json.dumps(captions).encode() + _content(row[image_column])).hexdigest()[:16]


def _content(image: Any) -> bytes:
    """The bytes of an image's file; of an image in memory, its pixels; nothing for one that cannot be read."""
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    try:
        if isinstance(image, str | PathLike):
            return Path(image).read_bytes()
        if isinstance(image, bytes | bytearray | memoryview):
            return bytes(image)
        decoded = decode_image(image)
        return f"{decoded.size}".encode() + decoded.tobytes()
    except (OSError, BrokenImage):
        return b""


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """All tensors of several files in the order of their names, one at a time in memory."""
    where = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            where |= dict.fromkeys(tensors.keys(), file)
    for name, file in sorted(where.items()):
        with safe_open(file, "pt") as tensors:
            yield name, tensors.get_tensor(name)


def _hash_weights(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_config(config: PretrainedConfig) -> str:
    """sha256 of what sets the model apart from the default of its class: a new release adds fields with defaults."""

    def computing(values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        named = {str(name): value for name, value in values.items()}  # classes are keyed by numbers
        kept = {name: value for name, value in named.items() if not (name in _PROVENANCE or name.startswith("_"))}
        return {name: computing(value) for name, value in kept.items()}

    return hashlib.sha256(json.dumps(computing(config.to_diff_dict()), sort_keys=True).encode()).hexdigest()


def _hash_tokenizer(tokenizer: Any) -> str:
    kind, *definition = tokenizer_definition(tokenizer)
    return hashlib.sha256(json.dumps([kind.__name__, *definition], sort_keys=True).encode()).hexdigest()


__all__ = [
    "describe_data",
    "describe_reading",
    "describe_reference",
    "describe_row",
    "difference",
    "identify_reference",
    "own_key",
    "own_keys",
]
