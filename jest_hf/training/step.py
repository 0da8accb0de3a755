# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""From the super-batch of a step to its sub-batch: schedule, score, select, take (arXiv 2406.17711, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.utils import logging

from jest_hf.batch import Scored, without_cached
from jest_hf.config import JESTConfig
from jest_hf.distributed import Exchanged, Ranks, Shares
from jest_hf.reference import ReferenceSource
from jest_hf.report.compare import selected_figures, selector_figures
from jest_hf.report.figures import Figure
from jest_hf.report.sources import Sources
from jest_hf.scoring import ScoredRows, Scorer
from jest_hf.selection import (
    DrawKey,
    Graded,
    Pool,
    Selection,
    Selector,
    own_scores,
    sample_of_pool,
    take_drawn,
    take_readable,
    take_sub_batch,
)
from jest_hf.training.early_selection import EarlyDraw, EarlySelection


logger = logging.get_logger(__name__)

MOST_EMPTY = 5  # steps in a row without a readable row, after which a run ends


@dataclass(frozen=True)
class SubBatch:
    """
    What this rank trains on in one step.

    Args:
        rows (`dict`): Its m rows.
        order (`torch.Tensor`): The place of each in the order of drawing, int64 `[m]`.
        moved (`int`): Rows that came from other ranks.
        bytes_moved (`int`): Their bytes.
        is_selected (`bool`): Whether the super-batch was scored, and these rows selected from it.
        selected (mapping of `str` to scores, *optional*): By model, the scores of these rows.
        stage (`str`, *optional*, defaults to `"uniform"`): What selected these rows, one of `selection.STAGES`.
        scores (`torch.Tensor`, *optional*): The score of each row by itself, float32 `[m]`, for the ledger.
        rejected (tuple of [`~jest_hf.selection.Graded`], *optional*): A sample of this rank's rows that were not
            selected, by stage, for the ledger.
    """

    rows: dict[str, Tensor]
    order: Tensor
    moved: int
    bytes_moved: int
    is_selected: bool
    selected: Mapping[str, Scored] = field(default_factory=dict)
    stage: str = "uniform"
    scores: Tensor | None = None
    rejected: tuple[Graded, ...] = ()

    @classmethod
    def of(cls, exchanged: Exchanged, is_selected: bool, selected: Mapping[str, Scored] | None = None) -> SubBatch:
        """Put together what the exchange between ranks has brought."""
        return cls(
            exchanged.batch, exchanged.order, exchanged.moved, exchanged.bytes_moved, is_selected, selected or {}
        )

    @classmethod
    def nothing(cls, rows: Mapping[str, Tensor]) -> SubBatch:
        """Return a sub-batch without rows."""
        return cls({name: value[:0] for name, value in rows.items()}, rows["example_id"][:0], 0, 0, is_selected=False)

    @property
    def is_empty(self) -> bool:
        """Whether no rank trains on anything: otherwise each has a row."""
        return len(self.order) == 0


class Metrics(Protocol):
    """Where the metrics and times of a step go."""

    def add(self, metrics: Mapping[str, Figure]) -> None: ...

    def timed(self, name: str) -> AbstractContextManager[None]: ...


class SelectionStep:
    """
    Scores a super-batch, selects the sub-batch and brings each rank its rows.

    Args:
        args ([`JESTConfig`]): Options of the run.
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`, for pairs.
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.
        group ([`~jest_hf.distributed.Ranks`]): The processes that select together.
        scorer ([`~jest_hf.scoring.Scorer`]): Computes scores.
        reference (`Callable`): Returns the reference in use, or `None`.
        metrics ([`Metrics`]): Takes the metrics of a step.
        sources ([`~report.sources.Sources`], *optional*): Where each training row comes from.
        early (`Callable`, *optional*): Returns what has selected before decoding, or `None`.
    """

    def __init__(
        self,
        args: JESTConfig,
        loss: str | None,
        *,
        ranks: Ranks,
        group: Ranks,
        scorer: Scorer,
        reference: Callable[[], ReferenceSource | None],
        metrics: Metrics,
        sources: Sources | None = None,
        early: Callable[[], EarlySelection | None] = lambda: None,
        reasons: Callable[[Tensor], list[str]] = lambda ids: [],
    ) -> None:
        self.args = args
        self.loss = loss
        self.ranks = ranks
        self.group = group
        self.scorer = scorer
        self.reference = reference
        self.metrics = metrics
        self.sources = sources
        self.early = early
        self.reasons = reasons
        self._empty_in_a_row = 0

    def __call__(self, model: nn.Module, super_batch: Mapping[str, Tensor], step: int) -> tuple[SubBatch, Pool]:
        """
        Take one step from super-batch to sub-batch. A collective.

        Args:
            model (`torch.nn.Module`): The wrapped learner.
            super_batch (mapping of `str` to `torch.Tensor`): This rank's rows, on its device.
            step (`int`): Number of the step, from 1.

        Returns:
            The sub-batch and the candidates. The sub-batch of all ranks is empty if fewer rows than ranks can be read.

        Raises:
            ValueError: on all ranks, if that happens in `MOST_EMPTY` steps in a row.
        """
        early = self.early()
        drawn = None if early is None else early.take(step)
        if drawn is not None and drawn.is_final:
            return self._drawn_early(super_batch, drawn, step)
        if drawn is not None:
            loaded = Shares(self.group, drawn.counts, drawn.counts)
            every = torch.ones_like(super_batch["valid"])
            super_batch = take_drawn(dict(super_batch), loaded, drawn.order, every).batch
        pool = self.pool(super_batch, step)
        if drawn is not None:
            self.metrics.add(drawn.metrics)
            pool = replace(pool, super_batch_ids=drawn.ids, unreadable=drawn.unreadable, n_scored=len(pool.positions))
        if self._too_few(pool, step):
            return SubBatch.nothing(pool.rows), pool
        if not self.selects(step):
            pool = self._without_cached(pool)
            return SubBatch.of(take_readable(pool.rows, pool.shares), is_selected=False), pool
        scores = self.scorer.on(model, pool.rows)
        with self.metrics.timed("scoring_seconds"):
            by_model = scores(self.args.scored_models).by_model()
        with self.metrics.timed("selection_seconds"):
            selection = self.select(pool, scores, DrawKey(self.args.seed, step))
        rejected = () if drawn is None else drawn.rejected
        rejected += self._rejected(pool, by_model, selection, step)
        pool = self._without_cached(pool, by_model)
        exchanged, parts = take_sub_batch(pool.shares, pool.rows, by_model, selection.indices)
        self.metrics.add(selected_figures(parts, self.loss, self.group))
        own = own_scores(self.args.selector(self.loss), parts["selected"]) if self.args.record_selection else None
        sub_batch = SubBatch.of(exchanged, True, parts["selected"])
        return replace(sub_batch, stage="step", scores=own, rejected=rejected), pool

    def _rejected(
        self, pool: Pool, by_model: Mapping[str, Scored], selection: Selection, step: int
    ) -> tuple[Graded, ...]:
        """A sample of this rank's rows that were not selected, for the ledger."""
        own = own_scores(self.args.selector(self.loss), by_model) if self.args.record_selection else None
        if own is None:
            return ()
        key = DrawKey(self.args.seed, step)
        return (sample_of_pool(pool, own, selection.indices, key, "step", self.ranks.size),)

    def _drawn_early(self, rows: Mapping[str, Tensor], draw: EarlyDraw, step: int) -> tuple[SubBatch, Pool]:
        """The sub-batch that the loader has drawn, without rows that could not be decoded. A collective."""
        shares = Shares.of(self.group, rows["valid"])
        pool = Pool(
            dict(rows) if self.args.settings.distillation_weight else without_cached(rows),
            positions=torch.arange(len(rows["valid"]), device=rows["valid"].device),
            shares=shares,
            size=sum(shares.readable),
            super_batch_ids=draw.ids,
            unreadable=draw.unreadable,
        )
        if self._too_few(pool, step):
            return SubBatch.nothing(pool.rows), pool
        exchanged = take_drawn(pool.rows, shares, draw.order, pool.rows["valid"])
        self.metrics.add(draw.metrics)
        scores = None
        if draw.scores is not None:
            scores = draw.scores.to(exchanged.order.device, non_blocking=True)[exchanged.order]
        sub_batch = SubBatch.of(exchanged, is_selected=True)
        return replace(sub_batch, stage="loader", scores=scores, rejected=draw.rejected), pool

    def _without_cached(self, pool: Pool, scores: Collection[str] = ()) -> Pool:
        """The pool without the reference's cached scores, unless the sub-batch needs them for its teacher."""
        if self.args.settings.distillation_weight and "reference" not in scores:
            return pool
        return replace(pool, rows=without_cached(pool.rows))

    def selects(self, step: int) -> bool:
        """Whether a step scores and selects."""
        return self.args.selects and self.args.schedule.selects(step)

    def pool(self, super_batch: Mapping[str, Tensor], step: int) -> Pool:
        """
        The candidates of a step: rows that the schedule lets it see, marked by whether learner and reference can read
        them. A collective.
        """
        rows = dict(super_batch)
        source = self.reference()
        if source is not None:
            rows["valid"] = source.readable(rows)
        rows = self._scheduled(rows, step)
        n_rows = len(rows["valid"])
        shares = Shares.of(self.group, rows["valid"])
        start = self.ranks.rank * n_rows
        return Pool(
            rows=rows,
            positions=torch.arange(start, start + n_rows, device=rows["valid"].device),
            shares=shares,
            size=min(self.args.per_device_train_batch_size * self.group.size, sum(shares.readable)),
        )

    def _too_few(self, pool: Pool, step: int) -> bool:
        """
        Whether a step trains on nothing, since fewer rows than ranks can be read, on any rank that selects by itself.
        A collective.
        """
        readable, n_rows = sum(pool.shares.readable), sum(pool.shares.rows)
        too_few = readable < self.group.size
        if self.group.size < self.ranks.size:
            too_few = any(self.ranks.gather_counts(int(too_few), self.args.device))
        self._empty_in_a_row = self._empty_in_a_row + 1 if too_few else 0
        if not too_few:
            return False
        said = (
            f"step {step}: only {readable} of the {n_rows} rows of the super-batch can be read, and "
            f"{self.group.size} are needed"
        )
        if self._empty_in_a_row < MOST_EMPTY:
            logger.warning(f"{said}; the step trains on nothing.")
            return True
        reasons = "; ".join(self.reasons(pool.rows["example_id"][~pool.rows["valid"]][:3])) or "see the log"
        raise ValueError(
            f"{said}, for the {MOST_EMPTY}th step in a row ({reasons}); check that the rows have their images, texts "
            "and labels."
        )

    def _scheduled(self, rows: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """
        The part of this rank's rows that the schedule lets a step see: all of them once the ramp is over, and always
        enough for a sub-batch of rows that can be read.
        """
        args, n_rows = self.args, len(rows["valid"])
        if not args.selects:
            return rows
        n_scored = args.schedule.scored(step, n_rows, args.per_device_train_batch_size)
        if n_scored == n_rows:
            return rows
        n_needed = 1 + int((rows["valid"].cumsum(0) < args.per_device_train_batch_size).sum())
        if self.selects(step):  # an engine makes each forward that scores a collective
            n_needed = max(self.ranks.gather_counts(n_needed, args.device))
        return {name: value[: max(n_scored, n_needed)] for name, value in rows.items()}

    def select(self, pool: Pool, scores: ScoredRows, key: DrawKey) -> Selection:
        """Select the sub-batch, and compare it with what `args.compare_selectors` would have selected."""
        # The options are read here, and not once: a hyperparameter search changes them between its trials.
        selection = self.args.selector(self.loss).select(pool, scores, key)
        self.metrics.add(selection.metrics)
        others = compared_selectors(self.args, self.loss)
        if others:
            known, indices = scores(self.args.scored_models), selection.indices
            source_of, names = None, []
            if self.sources is not None:
                source_of = self.sources.of(pool.rows["example_id"]).to(indices.device)
                names = self.sources.names
            self.metrics.add(selector_figures(others, pool, known, key, indices, self.loss, source_of, names))
        return selection


def compared_selectors(args: JESTConfig, loss: str | None) -> Sequence[Selector]:
    """The selectors in `args.compare_selectors`, with the settings of the run."""
    selectors = []
    for name in args.compare_selectors or ():
        needs_pairs = Selector.parse(name).needs_pairs
        # Joint scores are always made of losses: similarities are no scores of different examples.
        kind = "similarity" if args.pair_score == "similarity" and not needs_pairs else loss
        settings = {"n_chunks": args.n_chunks, "gain": args.selection_gain, "precision": args.selection_precision}
        selectors.append(Selector.parse(name, loss=kind, **settings))
    return selectors


__all__ = ["Metrics", "SelectionStep", "SubBatch", "compared_selectors"]
