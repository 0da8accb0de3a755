# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Scores of tiny data sets, shared by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from jest_hf.curation import ScoreSet, score_dataset
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


BROKEN = 7


def pairs(n: int = 50) -> datasets.Dataset:
    """Rows of which one has no image, with a column of sources."""
    rows = random_rows(n)
    rows[BROKEN]["image"] = None
    rows = [{**row, "source": "ab"[index % 5 == 0]} for index, row in enumerate(rows)]
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())


def score(folder: Path | str, dataset: Any = None, **options: Any) -> ScoreSet:
    """Score pairs with two tiny models, with 4 draws of 8 pairs, in shards of 20 rows."""
    settings: dict[str, Any] = {
        "learner": tiny_siglip(0),
        "ref_model": tiny_siglip(1),
        "processing_class": tiny_siglip_processor(),
        "batch_size": 8,
        "draws": 4,
        "dtype": "float32",
        "shard_rows": 20,
        "disable_tqdm": True,
    }
    return score_dataset(pairs() if dataset is None else dataset, folder, **{**settings, **options})
