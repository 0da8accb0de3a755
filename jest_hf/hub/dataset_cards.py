# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The cards of data sets: of a reference cache and of a curated set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from jest_hf.hub.card_parts import (
    about_table,
    at_revision,
    card_table,
    is_hub_id,
    percent,
    public_name,
    python,
    render_card,
)


# The Hub's names of size categories, by the number of rows that the category stays below.
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
    """Make the card of a reference cache from the template `model_cards/reference_cache.md`.

    Args:
        manifest (`Mapping`): The manifest of the finished cache (`ReferenceCache.manifest`).
        repo_id (`str`, *optional*): Repository of the cache on the Hub. Without one, the example code in the card
            reads the current folder.
        dataset (`str`, *optional*): The embedded data, as for [`~jest_hf.data.load_source`]: a Hub id, `"scenes:web"`
            or a path. Without it, the example code does not train.
        split, where, max_rows (*optional*): The embedded rows of `dataset`, as for [`~jest_hf.data.load_source`].
        license (`str`, *optional*): Licence of the embeddings, by the Hub's name, such as `"apache-2.0"`.

    Returns:
        `huggingface_hub.DatasetCard`: for [`~jest_hf.hub.write_card`] or [`~jest_hf.hub.push_card`].
    """
    reference, reading, data, storage = (manifest[part] for part in ("reference", "reading", "data", "storage"))
    shards = manifest["shards"]
    readable = sum(shard["readable"] for shard in shards)
    # A path cannot be loaded elsewhere, and is private.
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
        *((name.replace("_", " "), _as_text(value)) for name, value in chosen.items()),
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
        # The Hub's viewer cannot show embeddings.
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
        chosen="".join(f", {name}={python(value)}" for name, value in chosen.items()),
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
    """How a curated data set was made, for its card.

    Args:
        name (`str`): Hub id of the data set, or any other name; then the example code in the card loads the current
            folder.
        source (`str`): The pool that was filtered: a Hub id, a path or a built-in name.
        filters (sequence of `tuple[str, Mapping, int]`): The filters in the order of application: name, parameters,
            and number of rows left after the filter.
        rows (`int`): Number of rows of the pool before any filter.
        alignment_model (`str`, *optional*): Hub id or path of the model that scored how well image and text agree.
        alignment_revision (`str`, *optional*): Commit of the alignment model.
        license (`str`, *optional*): Licence of the data, by the Hub's name, such as `"apache-2.0"`.
        language (sequence of `str`, *optional*): ISO codes of the captions' languages.
        columns (sequence of `str`, *optional*): Columns of the data set.
        split (`str`, *optional*, defaults to `"train"`): The split under which the data set is stored.
        scoring (sequence of `tuple[str, Any]`, *optional*): How the scores were made by which the rows were chosen:
            names and values, such as the models.
        repeats (`str`, *optional*): How often each row is seen at the planned number of steps, as a sentence.
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
    scoring: Sequence[tuple[str, Any]] = ()
    repeats: str | None = None


def curated_card(summary: CuratedSummary) -> DatasetCard:
    """Make the card of a curated data set from the template `model_cards/curated.md`.

    Args:
        summary ([`CuratedSummary`]): How the data set was made.

    Returns:
        `huggingface_hub.DatasetCard`: for [`~jest_hf.hub.write_card`] or [`~jest_hf.hub.push_card`].

    Raises:
        ValueError: if there are more rows after a filter than before it.

    Example:

    ```python
    >>> from jest_hf.hub import CuratedSummary, curated_card
    >>> filters = [("caption_length", {"limit": 3}, 75)]
    >>> card = curated_card(CuratedSummary("me/clean", "scenes:web", filters, rows=100))
    >>> card.data.size_categories, "75.0%" in card.text
    ('n<1K', True)

    ```
    """
    before, table = summary.rows, []
    for name, parameters, kept in summary.filters:
        if kept > before:
            raise ValueError(
                f"filters: {name!r} cannot leave {kept} rows of {before}; give the number of rows left after each "
                "filter, in the order of application."
            )
        listed = ", ".join(f"{key} = {_as_text(value)}" for key, value in parameters.items())
        table.append((name, listed, f"{kept:,}", percent(kept / before if before else None) or ""))
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
        filters=card_table(["filter", "parameters", "rows left", "of those before"], table) if table else "",
        alignment_model=at_revision(summary.alignment_model, summary.alignment_revision),
        columns=list(summary.columns),
        scoring=about_table(list(summary.scoring)),
        repeats=summary.repeats,
    )


def _as_text(value: Any) -> str:
    """Return a parameter as text; of a local path, only the last part."""
    on_disk = isinstance(value, str | os.PathLike) and (os.path.isabs(value) or os.path.exists(value))
    return os.path.basename(os.path.normpath(value)) if on_disk else str(value)


def _geometry(image: Mapping[str, Any]) -> str:
    """Describe the size of images, from the manifest."""
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
