# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Real data for the benchmarks, from the parquet files that lie beside the project (`../shared/data`).

Each builder returns `{"curated", "pool", "validation", "test"}`, data sets with the columns `image`, `caption`,
`noise` (answer key: it measures a selector and never enters training) and `group` (for retrieval: any row of the right
group is a hit). Images are moved as bytes; none is decoded.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jest_hf.data.scenes import FEATURES, boilerplate_caption


EMOJI = "emoji_multistyle/emoji_core.parquet"
SKIN_TONES = "emoji_multistyle/emoji_skintones.parquet"
CLIP_ART = "openclipart/openclipart.parquet"
CIFAR = "cifar10/cifar10_{}.parquet"

CURATED_STYLES = ("noto", "fluent-high-contrast")
VALIDATION_STYLE = "fluent-flat"
TEST_STYLE = "fluent-3d"


def shared_data_folder() -> Path:
    """The folder of the files: `$JEST_HF_SHARED_DATA`, or `../shared/data` from the repository's root.

    Raises:
        FileNotFoundError: if it is not there.
    """
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("JEST_HF_SHARED_DATA", default))
    if not folder.is_dir():
        raise FileNotFoundError(f"No shared data at {folder}: let JEST_HF_SHARED_DATA name the folder with {EMOJI}.")
    return folder


def cross_style(seed: int = 0) -> dict[str, datasets.Dataset]:
    """
    Emoji, trained in some drawing styles and tested in one never seen. Concepts are shared.

    Curated: two styles with their names. Pool: every row of the styles that are not held out once with its name, as
    many again with the name of another row, half as many with a boilerplate caption: 60 % noise. Validation is
    `fluent-flat` (whose outlines the test style shares), test `fluent-3d`; `group` is the concept.

    Args:
        seed (`int`, *optional*, defaults to `0`): Decides which names are swapped, which rows get boilerplate, and the
            order of the pool.
    """
    emoji = _read(EMOJI, ["image", "name", "source", "concept"])
    images = emoji["image"]
    names, styles = _strings(emoji["name"]), _strings(emoji["source"])
    groups = _number(_strings(emoji["concept"]))

    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(~np.isin(styles, (VALIDATION_STYLE, TEST_STYLE)))
    with_boilerplate = rng.choice(rows, size=len(rows) // 2, replace=False)
    words = random.Random(seed)
    pool_rows = np.concatenate([rows, rows, with_boilerplate])
    captions = np.concatenate(
        [names[rows], _names_of_others(names[rows], rng), [boilerplate_caption(words) for _ in with_boilerplate]]
    )
    noise = np.repeat(["aligned", "shuffled", "boilerplate"], [len(rows), len(rows), len(with_boilerplate)])
    order = rng.permutation(len(pool_rows))

    parts = {"pool": _rows(images, pool_rows[order], captions[order], groups, noise[order])}
    for part, wanted in (("curated", CURATED_STYLES), ("validation", VALIDATION_STYLE), ("test", TEST_STYLE)):
        chosen = np.flatnonzero(np.isin(styles, wanted))
        parts[part] = _rows(images, chosen, names[chosen], groups)
    return parts


def demo_web() -> dict[str, datasets.Dataset]:
    """
    Emoji and clip art, a small curated part and a large web-like one whose noise is known (`jest_demo`).

    Validation and test are the rows of those `split`s of both sets with their first caption, without the style
    `fluent-3d` (kept for [`cross_style`]) and without titles flagged as vague. `group` is the emoji's concept (a skin
    tone is none of its own) or the clip art's lower-cased title.
    """
    columns = ["image", "name", "source", "split"]
    emoji = _read(EMOJI, [*columns, "concept"])
    skin_tones = _read(SKIN_TONES, [*columns, "concept"])
    clip_art = _read(CLIP_ART, [*columns, "vague"])

    # One long table of all images; the index files name a row of one of the three.
    starts = {EMOJI: 0, SKIN_TONES: emoji.num_rows, CLIP_ART: emoji.num_rows + skin_tones.num_rows}
    images, names, styles, splits = (
        pa.chunked_array([chunk for table in (emoji, skin_tones, clip_art) for chunk in table[column].chunks])
        for column in columns
    )
    names, styles, splits = _strings(names), _strings(styles), _strings(splits)
    titles = [f"title {title.lower()}" for title in clip_art["name"].to_pylist()]
    concepts = [f"concept {concept}" for table in (emoji, skin_tones) for concept in table["concept"].to_pylist()]
    groups = _number(np.array(concepts + titles))

    parts = {}
    for part, file in (("curated", "curated_index"), ("pool", "noisy_web_index")):
        index = pq.read_table(shared_data_folder() / "jest_demo" / f"{file}.parquet")
        rows = np.array([starts[name] for name in index["file"].to_pylist()]) + index["row"].to_numpy()
        parts[part] = _rows(images, rows, index["caption"], groups, index["noise"])

    clear = np.concatenate([np.ones(starts[CLIP_ART], dtype=bool), ~clip_art["vague"].to_numpy()])
    clear[starts[SKIN_TONES] : starts[CLIP_ART]] = False
    for part in ("validation", "test"):
        rows = np.flatnonzero((splits == part) & (styles != TEST_STYLE) & clear)
        parts[part] = _rows(images, rows, names[rows], groups)
    return parts


def cifar10(seed: int = 0, n_curated: int = 4000, wrong: float = 0.6) -> dict[str, datasets.Dataset]:
    """
    CIFAR-10 as image-text data: the caption is "a photo of a" and the label. Image-to-text R@1 is then the accuracy of
    zero-shot classification.

    Args:
        seed (`int`, *optional*, defaults to `0`): Decides which captions of the pool are wrong, and its order.
        n_curated (`int`, *optional*, defaults to `4000`): Rows of the curated part, from the end of the training set.
        wrong (`float`, *optional*, defaults to `0.6`): Share of the pool whose caption names another label.

    Validation is the first and test the second half of the test set; the pool is the rest of the training set.
    """
    train, held_out = (_read(CIFAR.format(part), ["image", "label"]) for part in ("train", "test"))
    names = datasets.Dataset(train).features["label"].names
    labels = train["label"].to_numpy()
    rng = np.random.default_rng(seed)
    pool = rng.permutation(len(labels) - n_curated)
    told = labels[pool].copy()
    is_wrong = rng.random(len(pool)) < wrong
    told[is_wrong] = (told[is_wrong] + rng.integers(1, len(names), int(is_wrong.sum()))) % len(names)
    captions = np.array([f"a photo of a {name}" for name in names])
    parts = {"pool": _rows(train["image"], pool, captions[told], labels, np.where(is_wrong, "shuffled", "aligned"))}
    curated = np.arange(len(labels) - n_curated, len(labels))
    parts["curated"] = _rows(train["image"], curated, captions[labels[curated]], labels)
    labels = held_out["label"].to_numpy()
    for part, rows in zip(("validation", "test"), np.array_split(np.arange(len(labels)), 2), strict=True):
        parts[part] = _rows(held_out["image"], rows, captions[labels[rows]], labels)
    return parts


def _read(file: str, columns: list[str]) -> pa.Table:
    return pq.read_table(shared_data_folder() / file, columns=columns)


def _strings(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist())


def _number(keys: np.ndarray) -> np.ndarray:
    """Each key's rank among the distinct keys: int64, equal for equal keys."""
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _names_of_others(names: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row the name of a random row that is called something else."""
    drawn = names[rng.integers(len(names), size=len(names))]
    while (same := drawn == names).any():
        drawn[same] = names[rng.integers(len(names), size=int(same.sum()))]
    return drawn


def _rows(
    images: pa.ChunkedArray,
    rows: np.ndarray,
    captions: np.ndarray | pa.ChunkedArray,
    groups: np.ndarray,
    noise: np.ndarray | pa.ChunkedArray | None = None,
) -> datasets.Dataset:
    """The data set of these rows' images and groups with the captions and noise given row by row."""
    columns = {
        "image": images.take(pa.array(rows)),
        "caption": captions,
        "noise": np.full(len(rows), "aligned") if noise is None else noise,
        "group": groups[rows],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)
