# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Descriptions of what a reference cache was made of: the reference's weights, how it reads, and the data.

Each description is a plain dict in the cache's manifest. A run that uses the cache describes its own reference and
data in the same way, and [`difference`] names the first difference. No weights are loaded for this: a reference is
identified by its commit on the Hub, or by the sha256 of its tensors.

A data set is identified by its number of rows, by a sample of its rows (image files and captions, byte for byte) and,
if the captions can be read without the images, by all captions. The fingerprint of `datasets` is no substitute: it is
random after a transform that cannot be hashed, differs between ways to load the same files, and does not exist for a
stream or a list. An image that was replaced between two rows of the sample is noticed when its row is read: the cache
has a digest of each row ([`~reference.compared.ComparingCollator`]).
"""

from __future__ import annotations

import hashlib
import json
import numbers
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from jest_hf.data.captions import CAPTION_COLUMNS, BrokenCaption, tokenizer_definition, usable_captions
from jest_hf.data.collator import JESTDataCollator
from jest_hf.data.files import changed, flat
from jest_hf.data.fingerprint import content_of, first_readable, sampled, table_of
from jest_hf.data.rows import Rows
from jest_hf.hub.pull import Snapshot
from jest_hf.images.resizing import resizer
from jest_hf.models import base_model, has_adapter
from jest_hf.models.load import load_config, load_processor
from jest_hf.reference.load import ADAPTER_CONFIG, locate_base, locate_reference


KEY_COLUMN = "example_id"
FULL_VIEW = "full"
SAME_MODEL = ("reference.weights", "reference.config")
# Fields of `reading` that earlier manifests do not have, and their values then.
_EARLIER = {"reading.resize": "PIL", "reading.scaled_jpeg_decoding": True}
# Fields of `data` that depend on how the rows are held: a list has no column of its captions.
_AS_DATA_ARE_HELD = ("captions", "keys", "row")
# Fields of a configuration that do not change what the model computes.
_PROVENANCE = ("architectures", "dtype", "torch_dtype", "transformers_version")


def identify_reference(ref_model: str | nn.Module, revision: str | None = None) -> dict[str, Any]:
    """Return the identity of a reference, for a cache's manifest.

    Args:
        ref_model (`str` or `torch.nn.Module`): A Hub id, a local path, or a whole model. The reference in a
            `peft.PeftModel` is what is not trained: the backbone, and the reference's adapter.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id. Default: `main`.

    Returns:
        `dict`: For a Hub id `repo` and `commit` (with `HF_HUB_OFFLINE`, the commit in the local cache) and, for an
        adapter, its `base`, identified in the same way. For a path or a model two sha256, `weights` and `config`: the
        same model gives the same two as a path and as a model. A path to an adapter is identified by the adapter's
        weights and its base.

    Raises:
        ValueError: for a model whose weights an engine has partitioned, and for a path without safetensors.
        OSError: for a Hub id that cannot be pulled.
    """
    if isinstance(ref_model, str):
        return _identify(locate_reference(ref_model, revision, weights=False))
    weights = dict(ref_model.named_parameters())
    if has_adapter(ref_model):
        weights = {name: weight for name, weight in weights.items() if not weight.requires_grad}
    if any(weight.numel() == 0 for weight in weights.values()):
        raise ValueError(
            "ref_model is a model with partitioned weights, which cannot be hashed; identify it before it is sharded, "
            "or pass its id or path as ref_model."
        )
    config: Any = base_model(ref_model).config
    return {"weights": _hash_weights(sorted(weights.items())), "config": _hash_config(config)}


def _identify(snapshot: Snapshot) -> dict[str, Any]:
    is_adapter = (snapshot.folder / ADAPTER_CONFIG).is_file()
    base = {"base": _identify(locate_base(snapshot.folder, weights=False))} if is_adapter else {}
    if snapshot.commit is not None:
        return {"repo": snapshot.name, "commit": snapshot.commit, **base}
    files = sorted(snapshot.folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"ref_model={snapshot.name!r} has no .safetensors; save the reference with save_pretrained.")
    if is_adapter:
        about = json.loads((snapshot.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        config = hashlib.sha256(json.dumps([about, base], sort_keys=True).encode()).hexdigest()
    else:
        config = _hash_config(load_config(snapshot.folder))
    return {"weights": _hash_weights(_tensors(files)), "config": config}


def describe_reference(
    ref_model: str | PreTrainedModel | None,
    revision: str | None,
    ref_processor: Any | None,
    collator: JESTDataCollator,
) -> dict[str, dict[str, Any]]:
    """Describe the reference of a run that uses a cache, without loading the reference.

    Args:
        ref_model (`str` or [`~transformers.PreTrainedModel`], *optional*): As in [`load_reference`].
        revision (`str`, *optional*): Branch, tag or commit of a Hub id. Default: `main`.
        ref_processor (*optional*): The reference's processor. Default: that of the collator, or the one stored with a
            Hub id or path, or the learner's, as without a cache.
        collator ([`JESTDataCollator`]): The collator of the run.

    Returns:
        Sections for [`ReferenceCache.check`]: `reading` and, if `ref_model` is given, `reference`.
    """
    known = {}
    if isinstance(ref_model, str):
        snapshot = locate_reference(ref_model, revision, weights=False)
        known["reference"] = _identify(snapshot)
        if ref_processor is None and collator.ref_processor is None:
            ref_processor = load_processor(snapshot.folder)
    elif ref_model is not None:
        known["reference"] = identify_reference(ref_model)
    if collator.ref_processor is None:
        collator = collator.with_reference(ref_processor)
    return {**known, "reading": describe_reading(collator)}


def describe_reading(collator: JESTDataCollator) -> dict[str, Any]:
    """Describe how the reference of a run with this collator reads images and texts: decoding, resize, image geometry,
    normalisation, tokenizer, text length, view."""
    geometry = collator.geometries.get("ref_", collator.geometries[""])
    text = collator.texts.get("ref_", collator.texts[""])
    images = (collator.ref_processor or collator.processor).image_processor
    normalised = images.do_normalize
    return {
        "image": {"kind": type(geometry).__name__, **asdict(geometry)},
        "resize": resizer(geometry.resample),
        "scaled_jpeg_decoding": collator.scaled_jpeg_decoding,
        "rescale_factor": images.rescale_factor if images.do_rescale else None,
        "mean": list(images.image_mean) if normalised else None,
        "std": list(images.image_std) if normalised else None,
        "tokenizer": _hash_tokenizer(text.tokenizer),
        "max_length": text.max_length,
        "lower_case": text.lower_case,
        "view": FULL_VIEW,
    }


def describe_data(rows: Rows, collator: JESTDataCollator) -> dict[str, Any]:
    """Identify a data set: the columns that are read, the number of rows, all captions, and a sample of rows.

    Args:
        rows ([`~jest_hf.data.rows.Rows`]): The data.
        collator ([`JESTDataCollator`]): The collator, which names the columns.

    Raises:
        ValueError: for data without rows, or without the columns.

    Example:

    ```python
    >>> from PIL import Image
    >>> from jest_hf import JESTDataCollator
    >>> from jest_hf.data import build_processor
    >>> from jest_hf.data.rows import Rows
    >>> from jest_hf.reference import describe_data
    >>> rows = [{"image": Image.new("RGB", (8, 8)), "text": "a black square"}] * 3
    >>> collator = JESTDataCollator(build_processor(["a black square"], 8, 300, 8))
    >>> described = describe_data(Rows(rows), collator)
    >>> described["n_rows"], described["caption_column"]
    (3, 'text')

    ```
    """
    if len(rows) == 0:
        raise ValueError("the data set has no rows; pass a data set with at least one row.")
    return describe_rows(rows, collator.image_column, _caption_column(first_readable(rows), collator))


def describe_rows(rows: Rows, image_column: str, caption_column: str) -> dict[str, Any]:
    """Identify a data set as [`describe_data`] does, by the names of its columns: no processor is needed."""
    known = {}
    if (table := table_of(rows)) is not None:
        known["captions"] = _hash_captions(table, caption_column)
    if (keys := own_keys(rows)) is not None:
        known["keys"] = hashlib.sha256(keys.tobytes()).hexdigest()
    return {
        "image_column": image_column,
        "caption_column": caption_column,
        "n_rows": len(rows),
        **known,
        "row": {str(index): _hash_row(rows[index], image_column, caption_column) for index in sampled(len(rows))},
    }


def describe_row(row: Mapping[str, Any], number: int, collator: JESTDataCollator) -> dict[str, Any]:
    """Describe the row with the number `number`, in the form of [`describe_data`]: all that a stream shows."""
    caption_column = _caption_column(row, collator)
    return {
        "image_column": collator.image_column,
        "caption_column": caption_column,
        "row": {str(number): _hash_row(row, collator.image_column, caption_column)},
    }


def own_keys(rows: Rows) -> np.ndarray | None:
    """Return the integer column `example_id` of the data, int64 `[N]`; `None` if there is no such column."""
    table = table_of(rows)
    if table is None or KEY_COLUMN not in table.column_names:
        return None
    column = table.select_columns([KEY_COLUMN]).with_format("numpy")[:][KEY_COLUMN]
    return column.astype(np.int64) if np.issubdtype(column.dtype, np.integer) else None


def own_key(row: Mapping[str, Any]) -> int | None:
    """Return the integer `example_id` of a row of a stream; `None` if the row has none."""
    key = row.get(KEY_COLUMN)
    return int(key) if isinstance(key, numbers.Integral) else None


def difference(cached: Mapping[str, Any], present: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the first difference of the fields that both descriptions have, as a part of a sentence; `None` if they
    agree. References with the same weights are the same, whatever their names and commits.

    Args:
        cached (`Mapping`): The manifest of a cache.
        present (`Mapping`): The descriptions of the run: some sections of a manifest, with some of their fields.

    Example:

    ```python
    >>> from jest_hf.reference.fingerprint import difference
    >>> difference({"data": {"n_rows": 1000}}, {"data": {"n_rows": 1200}})
    'data.n_rows was 1000, and in this run it is 1200'

    ```
    """
    for section, fields in json.loads(json.dumps(present)).items():
        ours, theirs = dict(flat(fields, section)), dict(flat(cached[section], section))
        if section == "reading":
            theirs = _EARLIER | theirs
        common = [name for name in ours if name in theirs]
        if section == "reference" and not common:
            return f"its reference was {_named(cached[section])}, and in this run it is {_named(fields)}"
        if all(name in common and ours[name] == theirs[name] for name in SAME_MODEL):
            continue  # the same model, perhaps from different commits
        if (found := changed(ours, theirs)) is not None:
            return found
    return None


def lacking(cached: Mapping[str, Any], present: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return which of the needed fields a cache lacks, as a part of a sentence; `None` if it has all of them.

    [`difference`] compares the fields that both have, so a field that is missing would pass there. A cache has to say
    how its reference reads, which columns were read, and what is in one of the sampled rows at least.

    Args:
        cached, present (`Mapping`): As in [`difference`].
    """
    absent = next((section for section in present if section not in cached), None)
    if absent is not None:
        return f"its manifest does not have {absent}"
    needed = [f"reading.{name}" for name in present.get("reading", ())]
    needed += [f"data.{name}" for name in present.get("data", ()) if name not in _AS_DATA_ARE_HELD]
    for name in needed:
        section, field = name.split(".")
        if name not in _EARLIER and field not in cached[section]:
            return f"its manifest does not have {name}"
    rows = present.get("data", {}).get("row", {})
    if len(rows) > 1 and not set(rows) & set(cached["data"].get("row", {})):
        return "its manifest has none of the rows that this run compares"
    return None


def _named(reference: Mapping[str, Any]) -> str:
    if "commit" in reference:
        return f"{reference['repo']}@{reference['commit']}"
    return f"a model with the sha256 {reference['weights']}"


def _caption_column(row: Mapping[str, Any], collator: JESTDataCollator) -> str:
    collator([row])  # raises an error that names a missing column
    return collator.caption_column or next(name for name in CAPTION_COLUMNS if name in row)


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
    return hashlib.sha256(json.dumps(captions).encode() + content_of(row[image_column])).hexdigest()[:16]


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of several files in the order of their names, one at a time in memory."""
    where: dict[str, Path] = {}
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
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_config(config: PretrainedConfig) -> str:
    """Return the sha256 of the fields that differ from the class's defaults: a new release may add fields."""

    def without_provenance(values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        named = {str(name): value for name, value in values.items()}  # the keys of id2label are numbers
        kept = {name: value for name, value in named.items() if not (name in _PROVENANCE or name.startswith("_"))}
        return {name: without_provenance(value) for name, value in kept.items()}

    fields = without_provenance(config.to_diff_dict())
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _hash_tokenizer(tokenizer: Any) -> str:
    kind, *definition = tokenizer_definition(tokenizer)
    return hashlib.sha256(json.dumps([kind.__name__, *definition], sort_keys=True).encode()).hexdigest()


__all__ = [
    "describe_data",
    "describe_reading",
    "describe_reference",
    "describe_row",
    "describe_rows",
    "difference",
    "identify_reference",
    "lacking",
    "own_key",
    "own_keys",
]
