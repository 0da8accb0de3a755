# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Streams of which only chosen rows are decoded.

A stream is read in order, so the bytes of every row pass by. Which rows are decoded is chosen by their ids:

    loader worker      reads n rows, keeps them undecoded, hands over their ids
    training process   gathers the ids of all ranks, chooses, sends back the places of this rank's chosen rows
    loader worker      decodes and tokenizes the chosen rows, hands over the batch, drops the other rows

Rows never change processes before they are decoded, and only the training process scores: a reference cache is opened
once on each rank. A worker hands over the ids of `depth` super-batches before it needs the first choice. It therefore
goes on with its work while the training process is busy with a step.
"""

from __future__ import annotations

import logging
import os
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import chain, islice, repeat
from typing import Any, cast

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from jest_hf.data.position import Place, Position
from jest_hf.data.stream import Handed, StreamedBatches, WorkerRows, as_it_is, prepare_stream, rows_of
from jest_hf.data.streamed_rows import StreamedRows, worker_numbers
from jest_hf.distributed import Ranks


logger = logging.getLogger(__name__)

ENCODED = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, type(None))  # forms of images that are not pixels
PATIENCE = 5.0  # seconds after which a worker that waits for a choice checks that the training process still lives

SKIPPED = "skipped"  # in place of a choice: a resumed run has this step behind it
# `choose(ids, epoch, step)`: from the ids of the candidates of a step, int64 `[W, n]` for W ranks, to the places of
# the rows that this rank loads, among its own n candidates.
Choose = Callable[[Tensor, int, int], list[int]]
Collator = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


class ChosenRows(WorkerRows):
    """The work of the loader workers: read candidates, and decode those that are chosen.

    The k-th item of a worker has the ids of its k-th super-batch and the chosen rows of its (k - `depth`)-th. With
    such a fixed distance the batches of all workers come in the order in which their ids came.

    Args:
        rows ([`~jest_hf.data.streamed_rows.StreamedRows`]): This rank's part of the stream.
        collator (`Callable`): Makes a batch from a list of rows.
        n_candidates (`int`): Rows from which a step draws, on this rank (n).
        image_column (`str`, *optional*): Column of the images.
        depth (`int`, *optional*, defaults to 1): Number of super-batches that a worker reads ahead.
    """

    def __init__(
        self,
        rows: StreamedRows,
        collator: Collator,
        n_candidates: int,
        image_column: str | None = None,
        depth: int = 1,
    ) -> None:
        super().__init__(rows, collator, n_candidates)
        self.image_column = image_column
        self.depth = depth
        self._choices: Sequence[Any] = ()  # a queue for each worker

    def open(self, n_workers: int, context: Any) -> Sequence[Any]:
        """Make the queues of a pass, one for each worker, of lists of places; `None` ends the work of a worker.

        Args:
            n_workers (`int`): Number of loader workers; with 0, rows are read in the training process.
            context: The context of multiprocessing in which the workers are started.
        """
        if n_workers == 0:
            self._choices = [queue.Queue()]
            return self._choices
        self._choices = [context.Queue() for _ in range(n_workers)]
        for one in self._choices:
            one.cancel_join_thread()  # a choice that nobody needs any more must not keep the process from ending
        return self._choices

    def __iter__(self) -> Iterator[Handed]:
        number, _ = worker_numbers()
        parent = None if get_worker_info() is None else os.getppid()
        held: deque[tuple[list[dict[str, Any]], Place | None] | None] = deque()
        yield from self._until_its_turn(number)
        for candidates in chain(self._read(number), repeat(None, self.depth)):
            oldest = held.popleft() if len(held) == self.depth else None
            held.append(candidates)
            batch, place = None, None
            if oldest is not None:
                choice = self._choice(number, parent)
                if choice is None:
                    return
                rows, place = oldest
                batch = {} if choice == SKIPPED else self._decoded(rows, cast("list[int]", choice))
            ids = None if candidates is None else torch.tensor([row["example_id"] for row in candidates[0]])
            yield Handed(number, batch, place, ids)

    def _read(self, worker: int) -> Iterator[tuple[list[dict[str, Any]], Place | None]]:
        """Yield lists of n rows, and the place after them; an incomplete last list is dropped."""
        rows = iter(self.rows)
        candidates = list(islice(rows, self.n_rows))
        if worker == self.rows.rank == 0 and self._are_decoded(candidates[:1]):
            logger.warning(
                "The rows of the stream come with decoded images, so each step decodes all of its candidates, and "
                "each loader worker keeps %d images; let the stream yield the bytes or the path of each image.",
                self.depth * self.n_rows,
            )
        while len(candidates) == self.n_rows:
            yield candidates, self.rows.place()
            candidates = list(islice(rows, self.n_rows))

    def _are_decoded(self, rows: list[dict[str, Any]]) -> bool:
        """Whether images come decoded; looked at in the first pass alone."""
        images = [row.get(cast(str, self.image_column)) for row in rows if row["epoch"] == 0]
        return not all(isinstance(image, ENCODED) for image in images)

    def _choice(self, worker: int, parent: int | None) -> list[int] | str | None:
        """Wait for the next choice; `None` if the pass is over."""
        while True:
            try:
                return cast("list[int] | str | None", self._choices[worker].get(timeout=PATIENCE))
            except queue.Empty:
                if parent is None or os.getppid() != parent:
                    raise RuntimeError("no rows were chosen: the training process has ended.") from None

    def _decoded(self, candidates: list[dict[str, Any]], places: list[int]) -> dict[str, Tensor]:
        if places:
            return self.collator([candidates[place] for place in places])
        # Names and shapes are those of other batches: rows may come from another rank.
        return {name: value[:0] for name, value in self.collator(candidates[:1]).items()}


class ChosenBatches(StreamedBatches):
    """The chosen rows of each super-batch of a stream, pass after pass without end. Iterating is a collective.

    A pass ends on all ranks as in [`StreamedBatches`], and step k has the super-batch that it would have there.

    Args:
        loader (`torch.utils.data.DataLoader`): Loader of [`ChosenRows`], with `batch_size=None`.
        choose (`Callable`): Chooses the rows of a step; the steps are numbered from 1.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The processes that share the stream; by default this
            process alone.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Device of the tensors that the ranks exchange.
        n_skipped (`int`, *optional*, defaults to 0): As in [`StreamedBatches`]; nothing is chosen for these steps.

    Raises:
        ValueError: While iterating, on all ranks, if a pass holds not even one super-batch for every rank.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        choose: Choose,
        ranks: Ranks | None = None,
        device: torch.device | str = "cpu",
        n_skipped: int = 0,
    ) -> None:
        super().__init__(loader, ranks, device, n_skipped)
        self.choose = choose

    def _read_pass(self, at: Position) -> Generator[dict[str, Tensor], None, int]:
        n_workers = self.loader.num_workers
        choices = self.worker_rows.open(n_workers, self.loader.multiprocessing_context or torch.multiprocessing)
        n_ahead = self.worker_rows.depth * max(1, n_workers)
        handed = iter(self.loader)
        candidates: deque[tuple[int, Tensor]] = deque()
        batches: deque[Handed] = deque()

        def receive() -> bool:
            one = next(handed, None)
            if one is None:
                return False
            if one.ids is not None:
                candidates.append((one.worker, one.ids))
            if one.batch is not None:
                batches.append(one)
            return True

        chosen, goes_on = at.step, True  # the last step for which rows are chosen
        try:
            while True:
                while goes_on and chosen < at.step + n_ahead:
                    while not candidates and receive():
                        pass
                    worker, own = candidates.popleft() if candidates else (0, None)
                    ids = self._of_all_ranks(own)
                    goes_on = ids is not None
                    if ids is not None:
                        chosen += 1
                        is_behind = chosen <= self.n_skipped
                        choices[worker].put(SKIPPED if is_behind else self.choose(ids, at.epoch, chosen))
                if at.step == chosen:
                    return at.step
                while not batches:
                    receive()
                one = batches.popleft()
                at = self._after(at, one)
                yield cast("dict[str, Tensor]", one.batch)
        finally:  # a worker that waits for a choice does not see that the loader ends
            for one in choices:
                one.put(None)

    def _of_all_ranks(self, own: Tensor | None) -> Tensor | None:
        """Return the ids of the candidates of all ranks, int64 `[W, n]`; `None` if a rank has none. A collective."""
        row = torch.zeros(1 + self.worker_rows.n_rows, dtype=torch.int64)
        if own is not None:
            row[0], row[1:] = 1, own
        gathered = self.ranks.gather(row.to(self.device)).cpu()
        return gathered[:, 1:] if bool(gathered[:, 0].all()) else None


def load_chosen(
    dataset: datasets.IterableDataset | IterableDataset[Any],
    collator: Collator,
    n_candidates: int,
    choose: Choose,
    *,
    image_column: str | None = None,
    ranks: Ranks | None = None,
    device: torch.device | str = "cpu",
    non_blocking: bool = False,
    n_skipped: int = 0,
    start: Position | None = None,
    **options: Any,
) -> DataLoader[dict[str, Tensor]]:
    """Make a loader of the chosen rows of a stream, for `Trainer.get_train_dataloader`. Iterating is a collective.

    Args:
        dataset, collator, image_column, ranks, device, non_blocking, n_skipped, start: As in
            [`~jest_hf.data.stream.load_stream`].
        n_candidates (`int`): Rows from which a step draws, on one rank (n).
        choose (`Callable`): Takes the ids of the candidates of all ranks (int64 `[W, n]`), the epoch and the number of
            the step from 1, and returns the places of the rows that this rank loads among its own candidates. If there
            are none, the batch has no rows.
        options: Options of the torch `DataLoader`. A worker reads as many super-batches ahead as `prefetch_factor`
            says. `persistent_workers` has no effect: workers start anew with each pass.

    Returns:
        A loader of accelerate, which has no length and no end.
    """
    n_workers = options.get("num_workers", 0)
    depth = (options.get("prefetch_factor") or 2) if n_workers else 1
    streamed = rows_of(dataset, image_column, ranks, n_skipped, start)
    rows = ChosenRows(streamed, collator, n_candidates, image_column, depth)
    loader: DataLoader[Any] = DataLoader(
        rows,
        batch_size=None,
        collate_fn=as_it_is,
        generator=torch.Generator(),  # as in `load_stream`
        **{**options, "persistent_workers": False},  # the queues of a pass reach the workers when these start
    )
    return prepare_stream(ChosenBatches(loader, choose, ranks, device, n_skipped), device, non_blocking)


__all__ = ["ChosenBatches", "ChosenRows", "load_chosen"]
