# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Selection before decoding: where scores need no images, the loader draws the sub-batch and reads only its rows.

With a criterion that uses the reference alone (`easy_reference`) and cached scores, a draw needs ids and no pixels. So
it is made where the loader draws its indices, in the main process of each rank, and the workers read, decode and
tokenize b rows in place of B. Every rank makes the draw of the whole super-batch for itself: the cache is on its disk,
and the noise is a function of (seed, step, position), so that no rank has to talk to another. The draw is the one that
the step would have made ([`~training.step.SelectionStep`]), bit by bit, and so is the share of each rank. On a GPU
machine a thread draws for the next step while the loader works on this one.

A joint draw of more than `MOST_FLOPS` is too much for a CPU. On a GPU the ranks then make it together, as in the step:
each holds the scores of its own rows on its device. The main thread of every rank draws, where the loader takes its
next indices. So the collectives come in the same order on all ranks, and the draws of the next steps are made ahead by
the loader's prefetch depth.

Of a stream the bytes of every candidate pass by, each rank sees its own part, and the ranks exchange the ids of their
candidates ([`~jest_hf.data.chosen.ChosenBatches`]). A rank then decodes the drawn rows among its own, be they more or
fewer than its share; the step moves the surplus to other ranks, as after a draw in the step.

A chosen row that turns out broken when it is decoded is left out, as in a uniform batch: the sub-batch then has one
example less, and `examples_skipped` counts it.

With `prefilter_ratio` the same draw is the first of two stages: it draws the super-batch from more candidates, and the
step selects from that as always.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from jest_hf.batch import Scores
from jest_hf.config import JESTConfig
from jest_hf.data.captions import draw_caption
from jest_hf.data.rows import EpochSampler
from jest_hf.distributed import Ranks, Shares, owners_of, plan_exchange
from jest_hf.reference import ReferenceSource
from jest_hf.report.compare import compare_selected
from jest_hf.selection import (
    SELECTIONS,
    DrawKey,
    Graded,
    Pool,
    own_scores,
    sample_of_pool,
    scores_of,
    take_sub_batch,
)


# A joint draw compares B candidates with b examples: 4 B b D FLOPs. Above this many, a GPU draws; without a GPU, the
# step. Chosen for a few tenths of a second on one core, and not measured against the steps of a GPU.
MOST_FLOPS = 2e10
# Added to the seed of a run for its first stage: the second draws with the noise of the run's own seed.
_PREFILTER_SEED = 2**61
_NOT_GRADED: tuple[Tensor | None, tuple[Graded, ...]] = (None, ())  # for the ledger: no scores, no rejected rows


@dataclass(frozen=True)
class EarlyDraw:
    """
    What the loader has drawn for a step.

    Args:
        is_final (`bool`): Whether it is the sub-batch, and not a super-batch that the step selects from.
        order (`torch.Tensor`): The place in the order of drawing of each row that is loaded, int64 `[b]`: the rows of
            the first of the ranks that select together, then those of the second, and so on.
        counts (`list[int]`): Rows that each of these ranks loads.
        ids (`torch.Tensor`): Ids of this rank's rows of the super-batch, int64 `[n]`.
        unreadable (`int`): Rows among them that could not be read when they were cached.
        metrics (`dict`): What there is to log about the draw.
        scores (`torch.Tensor`, *optional*): The score of each drawn row by itself, in the order of drawing, float32
            `[b]`, for the ledger; of a sub-batch.
        rejected (tuple of [`~jest_hf.selection.Graded`], *optional*): A sample of this rank's rows that were not
            drawn, for the ledger.
    """

    is_final: bool
    order: Tensor
    counts: list[int]
    ids: Tensor
    unreadable: int
    metrics: dict[str, float]
    scores: Tensor | None = None
    rejected: tuple[Graded, ...] = ()


class EarlySelection:
    """
    Draws sub-batches (or, with `args.prefilter_ratio`, super-batches) from ids.

    Args:
        args ([`JESTConfig`]): Options of the run.
        source ([`~jest_hf.reference.ReferenceSource`]): The cached reference.
        loss (`str`, *optional*): `"sigmoid"` or `"softmax"`, for pairs.
        caption_seed (`int`): Seed of the choice among the captions of a row.
        ranks ([`~jest_hf.distributed.Ranks`]): All processes of the run.
        from_stream (`bool`, *optional*, defaults to `False`): Whether the data are a stream, of which a rank can load
            only its own candidates.
        together (`bool`, *optional*, defaults to `False`): Whether the ranks make a draw together, on their devices,
            and not each for itself on its CPU. [`~EarlySelection.draw`] is then a collective.

    Attributes:
        draws (`dict`): By step, the draws whose rows are on their way through the loader.
    """

    def __init__(
        self,
        args: JESTConfig,
        source: ReferenceSource,
        loss: str | None,
        caption_seed: int,
        ranks: Ranks,
        from_stream: bool = False,
        together: bool = False,
    ) -> None:
        self.args = args
        self.source = source
        self.loss = loss
        self.caption_seed = caption_seed
        self.ranks = ranks
        self.from_stream = from_stream
        self.together = together
        self.draws: dict[int, EarlyDraw] = {}
        settings = args.settings
        self.is_final = settings.prefilter_ratio == 0
        self.schedule = args.schedule

    @classmethod
    def where_it_serves(
        cls,
        args: JESTConfig,
        source: ReferenceSource | None,
        loss: str | None,
        collator: Any,
        ranks: Ranks,
        from_stream: bool = False,
    ) -> EarlySelection | None:
        """
        Return an [`EarlySelection`] where a run can select before decoding and `args.select_before_decoding` lets it;
        arguments as above, and the data collator.

        Raises:
            ValueError: for `select_before_decoding=True` in a run that cannot.
        """
        wanted = args.select_before_decoding
        if args.settings.prefilter_ratio > 0 and source is not None:
            return cls(args, source, loss, getattr(collator, "seed", 0), ranks, from_stream)
        if wanted is False:
            return None
        obstacle = _obstacle(args, source)
        if obstacle is not None or source is None:
            if wanted:
                raise ValueError(
                    f"select_before_decoding=True needs scores that come from a cache alone, and {obstacle}; use "
                    "criterion='easy_reference' with reference_cache or cache_reference, or leave it out."
                )
            return None
        is_large = False
        if SELECTIONS[args.settings.selection].needs_pairs:
            n_together = ranks.size if args.selection_scope == "global" else 1
            of_rank = 4.0 * args.per_device_super_batch_size * args.per_device_train_batch_size * (source.width or 0)
            is_large = of_rank * n_together**2 > MOST_FLOPS
        if is_large and wanted is None and args.device.type == "cpu":
            return None
        return cls(args, source, loss, getattr(collator, "seed", 0), ranks, from_stream, together=is_large)

    def choose(self, ids: Tensor, epoch: int, step: int) -> list[int]:
        """
        Draw the rows of a step of a stream, as [`~EarlySelection.draw`].

        Args:
            ids (`torch.Tensor`): Ids of the candidates of all ranks, int64 `[W, n]`.
            epoch (`int`): Number of the pass over the stream, from 0.
            step (`int`): Number of the step, from 1.

        Returns:
            `list[int]`: the places of the rows that this rank loads, among its own n candidates.
        """
        positions = self.draw([(epoch, one) for one in ids.flatten().tolist()], step)
        return [position - self.ranks.rank * ids.shape[1] for position in positions]

    @property
    def draws_beside(self) -> bool:
        """
        Whether a thread draws for the next step while the loader works on this one. Not a draw that the ranks make
        together: its collectives belong in the thread that makes all others. Nor on a CPU, whose cores train.
        """
        return not self.together and self.args.device.type != "cpu"

    def draw(self, keys: Sequence[tuple[int, int]], step: int) -> list[int]:
        """
        Draw the rows of a step, and keep what there is to know about the draw in `draws`.

        Args:
            keys (sequence of `tuple[int, int]`): (epoch, index) of the rows of the super-batch of all ranks: the rows
                of the first rank, then those of the second, and so on.
            step (`int`): Number of the step, from 1.

        Returns:
            `list[int]`: the positions in `keys` of the rows that this rank loads: of its sub-batch, in order of
            drawing, or its super-batch, in order of positions; of a stream, of the drawn rows among its own. During
            the warm-up, which scores nothing, and if fewer rows than ranks can be read: the first rows.
        """
        start = time.perf_counter()
        n_rows = len(keys) // self.ranks.size
        own = slice(self.ranks.rank * n_rows, (self.ranks.rank + 1) * n_rows)
        if not self.schedule.selects(step):
            return list(range(len(keys))[own])[: self.args.per_device_super_batch_size]
        is_local = self.args.selection_scope == "local"
        # With the local scope each rank draws from its own rows alone, and keeps what it draws.
        chosen, draw = self._draw(keys, own, own if is_local else slice(0, len(keys)), step)
        name = "selection_seconds" if self.is_final else "prefilter/seconds"
        draw.metrics[name] = time.perf_counter() - start
        self.draws[step] = draw
        return chosen

    def _draw(
        self, keys: Sequence[tuple[int, int]], own: slice, candidates: slice, step: int
    ) -> tuple[list[int], EarlyDraw]:
        """
        The positions of the rows that this rank loads, and the draw. If fewer rows than ranks can be read, these are
        the first rows of each rank, and the step will train on nothing.
        """
        args, device = self.args, torch.device("cpu")
        group, held = Ranks(), candidates
        if self.together:
            device = args.device
            if candidates != own:
                group, held = self.ranks, own
        rows = {name: value.to(device) for name, value in self._rows(keys[held]).items()}
        rows["valid"] = self.source.readable(rows)
        positions = torch.arange(candidates.start, candidates.stop)
        n_ranks = len(positions) * self.ranks.size // len(keys)
        n_rows = len(positions) // n_ranks
        shares = Shares.of(group, rows["valid"])
        per_rank = args.per_device_train_batch_size if self.is_final else args.per_device_super_batch_size
        size = min(per_rank * n_ranks, sum(shares.readable))
        is_final, n_loaded, metrics, graded = self.is_final, 0, dict[str, float](), _NOT_GRADED
        own_part = slice(own.start - held.start, own.stop - held.start)
        if size >= n_ranks:
            pool = Pool(rows, torch.arange(held.start, held.stop, device=device), shares, size)
            drawn, metrics, graded = self._select(pool, group, step, own_part)
        else:
            n_loaded = min(n_rows, args.per_device_super_batch_size)  # the step counts those that it cannot read
            is_final = False
            drawn = (n_rows * torch.arange(n_ranks)[:, None] + torch.arange(n_loaded)).flatten()
        readers = owners_of(drawn, [n_rows] * n_ranks)
        if not self.from_stream:  # any rank can read any row
            readers = plan_exchange(readers, n_ranks)
        order, counts = readers.argsort(stable=True), readers.bincount(minlength=n_ranks).tolist()
        mine = {name: rows[name][own_part] for name in ("example_id", "valid")}
        unreadable = int((~mine["valid"][n_loaded:]).sum())
        draw = EarlyDraw(is_final, order, counts, mine["example_id"].cpu(), unreadable, metrics, *graded)
        read = order.split(counts)[self.ranks.rank if n_ranks > 1 else 0]
        return positions[drawn[read]].tolist(), draw

    def _select(
        self, pool: Pool, group: Ranks, step: int, own: slice
    ) -> tuple[Tensor, dict[str, float], tuple[Tensor | None, tuple[Graded, ...]]]:
        """Draw from the pool, in which this rank has the rows `own`, by the reference alone; positions on the CPU, and
        what there is to log, and for the ledger."""
        args = self.args
        reference = self.source.score(_NO_MODEL, pool.rows, len(pool.rows["valid"]))
        selector = args.selector(self.loss) if self.is_final else args.prefilter(self.loss)
        key = DrawKey(args.seed if self.is_final else args.seed + _PREFILTER_SEED, step)
        selection = selector.select(pool, lambda models: Scores(reference=reference), key)
        drawn = selection.indices
        if not self.is_final:
            drawn = drawn.sort().values  # as rows lie that were not drawn: in an order that says nothing of scores
        graded = _NOT_GRADED
        scores = own_scores(selector, {"reference": reference}) if self.args.record_selection else None
        if scores is not None:
            stage = "loader" if self.is_final else "prefilter"
            rejected = sample_of_pool(pool, scores, drawn, key, stage, self.ranks.size, own).on_host()
            graded = (scores_of(pool, scores, drawn).cpu() if self.is_final else None, (rejected,))
        _, parts = take_sub_batch(pool.shares, pool.rows, {"reference": reference}, drawn)
        metrics = {**selection.metrics, **compare_selected(parts, self.loss, group)}
        if self.is_final:
            return drawn.cpu(), {"scoring_seconds": 0.0, **metrics}, graded
        return drawn.cpu(), {f"prefilter/{name}": value for name, value in metrics.items()}, graded

    def _rows(self, keys: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """What a cache needs to know of rows: their ids, and which caption is drawn in their epoch."""
        ids = torch.tensor([index for _, index in keys], dtype=torch.int64)
        rows = {"example_id": ids, "valid": torch.ones(len(ids), dtype=torch.bool)}
        counts = self.source.caption_counts(ids)
        if counts is not None:
            numbers = [
                draw_caption(count, self.caption_seed, epoch, index) if count > 1 else 0
                for count, (epoch, index) in zip(counts.tolist(), keys, strict=True)
            ]
            rows["caption_number"] = torch.tensor(numbers, dtype=torch.int64)
        return rows

    def take(self, step: int) -> EarlyDraw | None:
        """Return the draw of a step, once; `None` for a step whose super-batch was loaded whole."""
        for earlier in [one for one in list(self.draws) if one < step]:  # skipped after a resume
            del self.draws[earlier]
        return self.draws.pop(step, None)


class EarlyBatches(Sampler[list[tuple[int, int]]]):
    """
    A batch sampler: the keys of the rows that this rank loads, one list for each step.

    Args:
        sampler ([`~jest_hf.data.rows.EpochSampler`]): The order of the rows.
        selection ([`EarlySelection`]): Draws the sub-batches.
        super_batch_size (`int`): Rows that a step draws from, over all ranks.
        drop_last (`bool`): Whether an incomplete last super-batch is dropped.
    """

    def __init__(
        self, sampler: EpochSampler, selection: EarlySelection, super_batch_size: int, drop_last: bool
    ) -> None:
        self.sampler = sampler
        self.selection = selection
        self.super_batch_size = super_batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.sampler.epoch * len(self)
        keys = iter(self.sampler)
        batches = (list(islice(keys, self.super_batch_size)) for _ in range(len(self)))
        numbered = zip(batches, count(step + 1), strict=False)
        if not self.selection.draws_beside:
            for batch, number in numbered:
                yield self._drawn(batch, number)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="early-selection") as thread:
            ahead = None
            for batch, number in numbered:
                drawn, ahead = ahead, thread.submit(self._drawn, batch, number)
                if drawn is not None:
                    yield drawn.result()
            if ahead is not None:
                yield ahead.result()

    def _drawn(self, batch: list[tuple[int, int]], step: int) -> list[tuple[int, int]]:
        return [batch[position] for position in self.selection.draw(batch, step)]

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.super_batch_size)
        return whole + (rest > 0 and not self.drop_last)


def _obstacle(args: JESTConfig, source: ReferenceSource | None) -> str | None:
    """Why a run cannot select before decoding; `None` if it can."""
    if not args.selects:
        return f"selection={args.selection!r} selects nothing"
    if set(args.scored_models) != {"reference"}:
        return f"criterion={args.criterion!r} scores with the learner"
    if source is None or source.reads_images:
        return "the reference is not cached"
    if args.compare_selectors:
        return f"compare_selectors={args.compare_selectors} compares whole super-batches"
    if args.selection_warmup_steps or args.filter_ratio_ramp_steps:
        return "the first steps follow a schedule (selection_warmup_steps, filter_ratio_ramp_steps)"
    return None


class _NoModel(nn.Module):
    """Stands for the learner where a cache scores, which uses no model."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a cached reference runs no model.")


_NO_MODEL = _NoModel()


__all__ = ["MOST_FLOPS", "EarlyBatches", "EarlyDraw", "EarlySelection"]
