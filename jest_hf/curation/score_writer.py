# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Write the scores of a data set, shard by shard, from what the models computed of it.

The missing shards are shared among the ranks. A finished shard is renamed into place, and the manifest is written
last: work that was killed continues with the next shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers.utils import logging

from jest_hf.curation.pairwise import RowLosses, rank_correlation
from jest_hf.curation.score_set import (
    FORMAT,
    KEY,
    LEARNABILITY,
    MANIFEST,
    UNFINISHED,
    ScoreSet,
    is_whole,
    open_scores,
    shard_name,
)
from jest_hf.data.files import claim_folder, read_json, release_folder, to_json, write_atomically
from jest_hf.data.rows import Rows
from jest_hf.distributed import Ranks, gather_objects
from jest_hf.reference import CachedReference
from jest_hf.reference.fingerprint import difference, own_keys
from jest_hf.reference.losses import IrreducibleLosses
from jest_hf.reference.verified import sha256_of


logger = logging.get_logger(__name__)

STABILITY_ROWS = 2000  # rows on which two halves of the draws are compared
Source = CachedReference | IrreducibleLosses


def write_scores(
    folder: Path,
    plan: dict[str, Any],
    sources: Mapping[str, Source],
    data: Rows | None,
    ranks: Ranks,
    device: torch.device | str,
    disable_tqdm: bool = False,
    why: Callable[[], str] = lambda: "see the log",
) -> ScoreSet:
    """Write the shards that are missing, and the manifest. A collective.

    Args:
        folder (`Path`): Folder of the scores.
        plan (`dict`): The manifest without `broken`, `stability` and `shards`.
        sources (`Mapping`): What the models computed, by model: `"learner"`, `"reference"` or both.
        data ([`~jest_hf.data.rows.Rows`], *optional*): The data, for the columns `example_id` and `__key__`.
        ranks ([`~jest_hf.distributed.Ranks`]): The ranks that share the work.
        device (`torch.device`): Device of the computation.
        disable_tqdm (`bool`, *optional*, defaults to `False`): Whether to hide the progress bar.
        why (`Callable`, *optional*): Returns why the first rows cannot be read, if no row can.
    """
    n_rows, size = plan["data"]["n_rows"], plan["storage"]["shard_rows"]
    spans = [range(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
    pending = _begin(folder, plan, spans, ranks, device)
    if pending is None:
        return open_scores(folder)
    try:
        readable = _readable(sources, spans)
        if not len(readable):
            raise ValueError(
                f"not one of the {n_rows} rows can be read ({why()}); check the columns of images and captions."
            )
        settings = plan["scoring"]
        losses = RowLosses(
            sources, readable, settings.get("loss"), settings.get("batch_size", 1), settings.get("seed", 0), device
        )
        draws = range(settings.get("draws", 1))
        own = pending[ranks.rank :: ranks.size]
        ids = _Ids(sources, data)
        for number in logging.tqdm(own, desc="Scoring", unit="shard", disable=disable_tqdm or ranks.rank > 0):
            rows = torch.arange(spans[number].start, spans[number].stop)
            table = _table(plan["columns"], rows, losses.of(rows, draws), ids)
            buffer = pa.BufferOutputStream()
            pq.write_table(table, buffer, compression="zstd")
            write_atomically(folder / shard_name(number), buffer.getvalue().to_pybytes())
        ranks.gather_counts(0, device)  # all shards are written
        if ranks.rank == 0:
            shards = [
                {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
                for path in (folder / shard_name(number) for number in range(len(spans)))
            ]
            known = {"broken": n_rows - len(readable), "stability": _stability(losses, draws), "shards": shards}
            write_atomically(folder / MANIFEST, to_json(plan | known))
            (folder / UNFINISHED).unlink(missing_ok=True)
        ranks.gather_counts(0, device)
        return open_scores(folder)
    finally:
        release_folder(folder, ranks)


def _begin(
    folder: Path, plan: dict[str, Any], spans: Sequence[range], ranks: Ranks, device: torch.device | str
) -> list[int] | None:
    """Return the shards to write, the same on every rank; `None` if all is there. A collective."""
    existing = read_json(folder / MANIFEST) or read_json(folder / UNFINISHED)
    if existing is not None:
        sections = ("learner", "reference", "data", "scoring", "storage")
        found = None
        if existing.get("format") != FORMAT:
            found = f"their format is {existing.get('format')!r}"
        elif existing["columns"] != plan["columns"]:
            found = f"they have the columns {', '.join(existing['columns'])}, not {', '.join(plan['columns'])}"
        else:
            found = difference(existing, {name: plan[name] for name in sections if name in plan})
        if found is not None:
            raise ValueError(
                f"the scores in {folder} are others: {found}; choose another output_dir, or delete {MANIFEST} and the "
                f"files scores-*.parquet in {folder} (the embeddings are kept, and used again)."
            )
    whole = [is_whole(folder / shard_name(k), len(span), plan["columns"]) for k, span in enumerate(spans)]
    if existing is None:
        whole = [False] * len(spans)  # files of which nothing is known
    done = all(whole) and (folder / MANIFEST).exists()
    pending = [k for k, one in enumerate(whole) if not one]
    if any(other != pending for other in gather_objects(ranks, pending, device)):
        raise ValueError(
            f"the processes do not find the same files in {folder}; choose a folder on a file system that all hosts "
            "share."
        )
    if done:
        return None
    claim_folder(folder, ranks, device)
    if ranks.rank == 0:
        write_atomically(folder / UNFINISHED, to_json(plan))
        (folder / MANIFEST).unlink(missing_ok=True)
    ranks.gather_counts(0, device)
    return pending


def _readable(sources: Mapping[str, Source], spans: Sequence[range]) -> torch.Tensor:
    """Return the rows that every model could read, int64, ascending."""
    found = []
    for span in spans:
        rows = torch.arange(span.start, span.stop)
        valid = torch.ones(len(rows), dtype=torch.bool)
        for source in sources.values():
            valid = source.readable({"example_id": rows, "valid": valid})
        found.append(rows[valid])
    return torch.cat(found)


class _Ids:
    """The names of rows: `example_id` and, for a webdataset, `__key__`."""

    def __init__(self, sources: Mapping[str, Source], data: Rows | None) -> None:
        self._keys = None if data is None else own_keys(data)
        self._cache = None
        if data is None:
            self._cache = next(one.cache for one in sources.values() if isinstance(one, CachedReference))
        self._named = None
        if data is not None and KEY in (getattr(data.dataset, "column_names", None) or ()):
            self._named = data.dataset.select_columns([KEY]).with_format("arrow")

    def of(self, rows: torch.Tensor) -> dict[str, Any]:
        """Return the columns for consecutive rows. Without an integer column `example_id`, the number of a row is its
        `example_id`, as in training.
        """
        ids = rows.numpy()
        if self._cache is not None:
            ids = self._cache.keys_of(rows).numpy()
        elif self._keys is not None:
            ids = self._keys[ids]
        found = {"row": rows.numpy(), "example_id": ids}
        if self._named is not None:
            found[KEY] = self._named[int(rows[0]) : int(rows[-1]) + 1][KEY].cast(pa.string())
        return found


def _table(columns: Sequence[str], rows: torch.Tensor, losses: Mapping[str, torch.Tensor], ids: _Ids) -> pa.Table:
    """Return a shard of scores."""
    values = ids.of(rows)
    values |= {f"{name}_loss": loss.numpy().astype(np.float32) for name, loss in losses.items()}
    if LEARNABILITY in columns:  # from float64: a small difference of two large sums
        values[LEARNABILITY] = (losses["learner"] - losses["reference"]).numpy().astype(np.float32)
    return pa.table({name: values[name] for name in columns})


def _stability(losses: RowLosses, draws: range) -> dict[str, float]:
    """Return Spearman's correlation of the scores from two halves of the draws, on a sample of the readable rows."""
    if losses.loss is None or len(draws) < 2:
        return {}
    n = len(losses.readable)
    sample = np.random.default_rng([losses.seed % 2**64, n]).choice(n, min(n, STABILITY_ROWS), replace=False)
    rows = losses.readable[torch.from_numpy(np.sort(sample))]
    half = len(draws) // 2
    halves = [losses.of(rows, draws[:half]), losses.of(rows, draws[half : 2 * half])]
    scored = [{f"{name}_loss": loss.numpy() for name, loss in one.items()} for one in halves]
    for one in scored:
        if len(one) == 2:
            one[LEARNABILITY] = one["learner_loss"] - one["reference_loss"]
    return {name: rank_correlation(scored[0][name], scored[1][name]) for name in scored[0]}


__all__ = ["Source", "write_scores"]
