# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The data-set cards: of a reference cache (what was embedded by what) and of a curated set (what was left out)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from jest_hf.hub.card_parts import about_table, at_revision, is_hub_id, percent, public_name, render_card
from jest_hf.report.table import format_table


# The Hub's own words, by the number of rows from which the next one holds.
SIZE_CATEGORIES = {
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
}
LARGEST = "n>1B"


def reference_cache_card(
    manifest: Mapping[str, Any],
    repo_id: str | None = None,
    *,
    dataset: str | None = None,
    split: str | None = None,
    where: Mapping[str, Any] | None = None,
    max_rows: int | None = None,
    license: str | None = None,
) -> DatasetCard:
    """
    Writes the card of a reference cache from the template `model_cards/reference_cache.md`.

    Args:
        manifest (`Mapping`):
            That of the finished cache (`ReferenceCache.manifest`).
        repo_id (`str`, *optional*):
            Where the cache will be on the Hub. The example code reads the current folder where it is not a Hub id.
        dataset (`str`, *optional*):
            What was embedded, as [`~jest_hf.data.load_source`] takes it: a Hub id, `"scenes:web"`, a path. Unknown:
            `None`, and the example code does not train.
        split, where, max_rows (*optional*):
            Which of its rows, in the same function's words.
        license (`str`, *optional*):
            Licence of the embeddings, as the Hub names it.

    Returns:
        `huggingface_hub.DatasetCard`: for [`~jest_hf.hub.write_card`] or [`~jest_hf.hub.push_card`].
    """
    reference, reading, data, storage = (manifest[part] for part in ("reference", "reading", "data", "storage"))
    shards = manifest["shards"]
    readable = sum(shard["readable"] for shard in shards)
    # A path cannot be loaded elsewhere, nor is it anybody's business.
    loadable = dataset if dataset is not None and (is_hub_id(dataset) or dataset.startswith("scenes")) else None
    chosen = {"split": split, "where": dict(where) if where else None, "max_rows": max_rows}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    name, base = at_revision(reference.get("repo"), reference.get("commit")), reference.get("base", {})
    about = [
        ("reference", name),
        ("model underneath the reference, an adapter", at_revision(base.get("repo"), base.get("commit"))),
        ("sha256 of its weights", reference.get("weights")),
        ("loss it was trained with", manifest["loss"]),
        ("logit scale", f"{manifest['logit_scale']:.6g}"),
        ("logit bias", None if manifest["logit_bias"] is None else f"{manifest['logit_bias']:.6g}"),
        ("images read at", _geometry(reading["image"])),
        ("view", reading["view"]),
        ("tokens of a caption", reading["max_length"]),
        ("captions in lower case", "yes" if reading["lower_case"] else "no"),
    ]
    contents = [
        ("data", public_name(dataset)),
        *((name.replace("_", " "), _told(value)) for name, value in chosen.items()),
        ("columns", f"{data['image_column']}, {data['caption_column']}"),
        ("rows", data["n_rows"]),
        ("rows that could not be read", data["n_rows"] - readable),
        ("captions", sum(shard["captions"] for shard in shards)),
        ("found by the rows' own example_id", "yes" if manifest["keyed"] else "no, by their numbers"),
        ("width of an embedding", manifest["width"]),
        ("dtype", storage["dtype"]),
        ("shards", len(shards)),
        ("bytes", sum(shard["bytes"] for shard in shards)),
        ("FLOPs that it took", f"{manifest['flops']:.3g}"),
        ("autocast while embedding", None if storage["precision"] == "no" else storage["precision"]),
    ]
    here = repo_id if is_hub_id(repo_id) else None
    metadata = DatasetCardData(
        license=license,
        pretty_name=public_name(repo_id),
        size_categories=_size_category(data["n_rows"]),
        source_datasets=[dataset] if is_hub_id(dataset) else None,
        tags=["jest", "jest_hf", "reference-cache", "embeddings", "safetensors"],
        task_categories=["zero-shot-image-classification"],
        # What is here is nothing that the viewer could show.
        viewer=False,
    )
    return render_card(
        DatasetCard,
        metadata,
        "reference_cache.md",
        title=here or "Reference cache",
        cache_id=here or ".",
        reference=name,
        data=public_name(dataset),
        dataset=loadable,
        chosen="".join(f", {name}={value!r}" for name, value in chosen.items()).replace("'", '"'),
        caption_column=data["caption_column"],
        loss=manifest["loss"],
        about=about_table(about),
        contents=about_table(contents),
        half="float16" in storage["dtype"],
        n_broken=data["n_rows"] - readable,
        sampled=len(data.get("row", {})),
    )


@dataclass
class CuratedSummary:
    """
    How a curated set was made, as its card tells it.

    Args:
        name (`str`):
            What the set is called: its Hub id, or any other name. The example code loads the current folder where it
            is not a Hub id.
        source (`str`):
            The pool that was filtered: a Hub id, a path or a built-in name.
        filters (sequence of `tuple[str, Mapping, int]`):
            In the order of application: the filter's name, its parameters, and how many rows were left after it.
        rows (`int`):
            Rows of the pool before any filter.
        alignment_model (`str`, *optional*):
            Hub id or path of the model that judged how well image and text agree.
        alignment_revision (`str`, *optional*):
            Its commit.
        license (`str`, *optional*):
            Licence of the data, as the Hub names it.
        language (sequence of `str`, *optional*):
            ISO codes of the captions' languages.
        columns (sequence of `str`, *optional*):
            Columns of a row.
        split (`str`, *optional*, defaults to `"train"`):
            The split under which the set is stored.
    """

    name: str
    source: str
    filters: Sequence[tuple[str, Mapping[str, Any], int]]
    rows: int
    alignment_model: str | None = None
    alignment_revision: str | None = None
    license: str | None = None
    language: Sequence[str] = ()
    columns: Sequence[str] = ()
    split: str = "train"


def curated_card(summary: CuratedSummary) -> DatasetCard:
    """
    Writes the card of a curated set from the template `model_cards/curated.md`.

    Args:
        summary ([`CuratedSummary`]):
            How it was made.

    Returns:
        `huggingface_hub.DatasetCard`: for [`~jest_hf.hub.write_card`] or [`~jest_hf.hub.push_card`].

    Raises:
        `ValueError`: if a filter is said to have left more rows than it got.
    """
    before, table = summary.rows, []
    for name, parameters, kept in summary.filters:
        if kept > before:
            raise ValueError(
                f"filters: {name!r} got {before} rows and is said to have kept {kept}; give the numbers of rows left "
                "after each filter, in the order of application."
            )
        told = ", ".join(f"{key} = {_told(value)}" for key, value in parameters.items())
        table.append((name, told, f"{kept:,}", percent(kept / before if before else None) or ""))
        before = kept
    named = summary.name if is_hub_id(summary.name) else None
    metadata = DatasetCardData(
        language=list(summary.language) or None,
        license=summary.license,
        pretty_name=public_name(summary.name),
        size_categories=_size_category(before),
        source_datasets=[summary.source] if is_hub_id(summary.source) else None,
        tags=["jest", "jest_hf", "data-curation", "image-text"],
        task_categories=["zero-shot-image-classification"],
    )
    return render_card(
        DatasetCard,
        metadata,
        "curated.md",
        title=named or public_name(summary.name),
        dataset_id=named,
        split=summary.split,
        source=public_name(summary.source),
        rows=summary.rows,
        kept=before,
        share=percent(before / summary.rows if summary.rows else None),
        filters=format_table(["filter", "parameters", "rows left", "of those before"], table) if table else "",
        alignment_model=at_revision(summary.alignment_model, summary.alignment_revision),
        columns=list(summary.columns),
    )


def _told(value: Any) -> str:
    """A parameter as a text: of something on this machine the last part of its path."""
    on_disk = isinstance(value, str | os.PathLike) and (os.path.isabs(value) or os.path.exists(value))
    return os.path.basename(os.path.normpath(value)) if on_disk else str(value)


def _geometry(image: Mapping[str, Any]) -> str:
    """How images are shaped, from the manifest's words."""
    if "max_num_patches" in image:
        return f"up to {image['max_num_patches']} patches of {image['patch_size']} pixels a side"
    parts = []
    if image["size"] is not None:
        parts.append(f"{image['size'][0]} x {image['size'][1]} pixels")
    if image["shortest_edge"] is not None:
        parts.append(f"shorter side {image['shortest_edge']} pixels")
    if image["crop_size"] is not None:
        parts.append(f"centre crop of {image['crop_size'][0]} x {image['crop_size'][1]}")
    return ", ".join(parts)


def _size_category(rows: int) -> str:
    return next((name for limit, name in SIZE_CATEGORIES.items() if rows < limit), LARGEST)


__all__ = ["CuratedSummary", "curated_card", "reference_cache_card"]
