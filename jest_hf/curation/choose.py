# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Choose the rows of a curated data set: by a threshold, a share, or a share per source; by scores or by a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jest_hf.report import read_selections
from jest_hf.selection import CRITERIA


LEDGER = "selections.parquet"
TIMES_SELECTED = "times_selected"
MANY_PASSES = 4  # passes over the kept rows, above which a larger share is named


@dataclass(frozen=True)
class Rule:
    """Which rows are kept: those with the highest scores.

    Args:
        keep (`float`, *optional*): Share of the readable rows to keep, in (0, 1]; of equal scores the first rows.
        above (`float`, *optional*): Keep the rows whose score is above this threshold. Without `keep` and `above` the
            rows with a score above 0 are kept, which for a run are all rows that it selected.
        per (`str`, *optional*): Column of the data; with `keep`, the share is kept of each of its values.

    Raises:
        ValueError: for a share outside of (0, 1], for `keep` with `above`, and for `per` without `keep`.

    Example:

    ```python
    >>> import numpy as np
    >>> from jest_hf.curation import Rule
    >>> Rule(keep=0.5).choose(np.array([3.0, 1.0, np.nan, 2.0, 0.0])).tolist()
    [0, 3]

    ```
    """

    keep: float | None = None
    above: float | None = None
    per: str | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} must be above 0 and at most 1: the share of rows to keep, e.g. 0.2.")
        if self.keep is not None and self.above is not None:
            raise ValueError(f"keep={self.keep} and above={self.above} are two rules; pass one of them.")
        if self.per is not None and self.keep is None:
            raise ValueError(f"per={self.per!r} keeps a share of each source; pass the share as keep, e.g. 0.2.")

    def choose(self, scores: np.ndarray, groups: Sequence[object] | None = None) -> np.ndarray:
        """Return the rows to keep, int64, ascending.

        Args:
            scores (`np.ndarray`): One score a row, `[N]`; higher is better. NaN is never kept.
            groups (sequence, *optional*): With `per`, the value of the column in each row, `[N]`.

        Raises:
            ValueError: if no row is left.
        """
        readable = np.flatnonzero(~np.isnan(scores))
        if self.keep is None:
            threshold = 0.0 if self.above is None else self.above
            kept = readable[scores[readable] > threshold]
            if not len(kept):
                highest = f"; the highest is {scores[readable].max():.4g}" if len(readable) else ""
                raise ValueError(f"no row has a score above {threshold}{highest}; lower the threshold (above).")
            return kept
        if groups is None:
            parts = [readable]
        else:
            codes = pa.array(groups).dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)
            parts = [readable[codes[readable] == code] for code in np.unique(codes)]
        best = [self._best(scores, part) for part in parts]
        kept = np.sort(np.concatenate(best))
        if not len(kept):
            raise ValueError(f"keep={self.keep} leaves none of {len(readable)} readable rows; raise keep.")
        return kept

    def _best(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        order = np.argsort(-scores[rows], kind="stable")
        return rows[order[: round((self.keep or 1.0) * len(rows))]]


def scores_by(criterion: str, losses: dict[str, np.ndarray]) -> np.ndarray:
    """Return the score of each row by a criterion, float32 `[N]`.

    Args:
        criterion (`str`): One of `CRITERIA`.
        losses (`dict`): `learner_loss` and `reference_loss`, float32 `[N]` each, as far as they are known.

    Raises:
        ValueError: for an unknown criterion, or one that needs a loss that is not known.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r} is not known; choose one of {', '.join(CRITERIA)}.")
    chosen = CRITERIA[criterion]
    if criterion in losses:  # learnability, from the difference in float64
        return losses[criterion]
    known = {name: losses.get(f"{name}_loss") for name in ("learner", "reference")}
    lacking = [name for name in chosen.weights if known[name] is None]
    if lacking:
        raise ValueError(
            f"criterion={criterion!r} needs the {lacking[0]}'s losses, and these scores have "
            f"{', '.join(losses)}; choose another criterion, or score with the {lacking[0]} too."
        )
    given = [
        None if loss is None else torch.from_numpy(loss.copy()) for loss in (known["learner"], known["reference"])
    ]
    return np.asarray(chosen.own(*given).numpy())


def default_criterion(losses: dict[str, np.ndarray]) -> str:
    """Return the criterion of scores if none is named: learnability or, without a learner or a reference, the other
    model's loss."""
    if "learnability" in losses:
        return "learnability"
    return "easy_reference" if "reference_loss" in losses else "hard_learner"


def read_times_selected(run: str | Path, example_ids: np.ndarray) -> np.ndarray:
    """Return how often a run selected each row, int64 `[N]`, from the run's ledger.

    Args:
        run (`str` or `Path`): The run's `output_dir`, of a run with `record_selection=True`.
        example_ids (`np.ndarray`): The `example_id` of each row, int64 `[N]`.

    Raises:
        FileNotFoundError: if the folder has no ledger.
        ValueError: if the ledger is damaged, empty, or of other data.
    """
    path = Path(run) / LEDGER
    if not path.exists():
        raise FileNotFoundError(
            f"{run} has no ledger ({LEDGER}); train with record_selection=True, or name the output folder of the run."
        )
    selected = read_selections(path)["example_id"]
    if selected.null_count:
        raise ValueError(
            f"{path} is no ledger that this version reads: it lacks example_id; curate with the version of jest_hf "
            "that wrote it."
        )
    counts = pc.value_counts(selected)
    ids, times = counts.field("values").to_numpy(), counts.field("counts").to_numpy()
    if not len(ids):
        raise ValueError(f"the ledger {path} is empty: the run has not selected anything yet.")
    order = np.argsort(example_ids, kind="stable")
    places = np.searchsorted(example_ids, ids, sorter=order).clip(max=len(example_ids) - 1)
    strange = example_ids[order[places]] != ids
    if strange.any():
        raise ValueError(
            f"the run in {run} selected the row with example_id={ids[strange][0]}, which this data set of "
            f"{len(example_ids)} rows does not have; name the run's own data set, or set by_key if that was a stream."
        )
    found = np.zeros(len(example_ids), dtype=np.int64)
    found[order[places]] = times
    return found


def repeats(kept: int, rows: int, steps: int | None, batch_size: int | None) -> str | None:
    """Say how often each row is seen at a number of steps; `None` without steps.

    Args:
        kept, rows (`int`): Rows of the curated set, and of the data set that it was made of.
        steps (`int`, *optional*): Steps of the planned run.
        batch_size (`int`, *optional*): Rows of a step that are trained on, over all devices.

    Raises:
        ValueError: if only one of steps and batch size is given, or one is below 1.

    Example:

    ```python
    >>> from jest_hf.curation.choose import repeats
    >>> repeats(kept=200, rows=1000, steps=100, batch_size=8)
    '100 steps of 8 rows are 4.0 passes over the 200 kept rows, and 0.8 passes over all 1,000 rows.'

    ```
    """
    if steps is None and batch_size is None:
        return None
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value is None or value < 1:
            raise ValueError(f"{name}={value} must be at least 1: pass steps and batch_size of the planned run.")
    seen = (steps or 0) * (batch_size or 0)
    said = (
        f"{steps:,} steps of {batch_size:,} rows are {seen / kept:.1f} passes over the {kept:,} kept rows, and "
        f"{seen / rows:.1f} passes over all {rows:,} rows."
    )
    if seen / kept > MANY_PASSES and kept < rows:
        share = seen / MANY_PASSES / rows
        less = f"a share of {share:.2g} makes {MANY_PASSES} passes" if share < 1 else "all rows make the fewest passes"
        said += f" A row is worth less each time it is repeated (arXiv 2404.07177); {less}."
    return said


__all__ = ["Rule", "read_times_selected", "repeats", "scores_by"]
