# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Streams: data sets without a length, of which each process reads a part.

[`WorkerRows`] is the work of a loader worker, on its share of the rows of its rank. [`StreamedBatches`] ends a pass
over the stream on all ranks as soon as one rank has no rows left. [`load_stream`] makes a loader from these.

For a `Trainer` all passes are ONE endless epoch, since the length of a stream is unknown. A resumed run goes on at the
[`~jest_hf.data.position.Position`] in its checkpoint. Without one, as in a checkpoint of an earlier version and for a
torch `IterableDataset`, the rows before it are read again, but not decoded. The Trainer skips as many super-batches as
it has trained on, in both cases; these are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any, NamedTuple, cast

import datasets
import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from jest_hf.data.position import Place, Position
from jest_hf.data.streamed_rows import StreamedRows, worker_numbers
from jest_hf.distributed import Ranks


KEPT = 4  # positions: the Trainer saves that of the step before the last super-batch that its loader has taken


class Handed(NamedTuple):
    """What a loader worker hands over at a time.

    Attributes:
        worker (`int`): Number of the worker.
        batch (`dict`, *optional*): A super-batch, or its chosen rows; empty for a step that a resumed run has behind
            it, and `None` if there is none.
        place ([`~jest_hf.data.position.Place`], *optional*): Where the rows of the super-batch ended.
        ids (`torch.Tensor`, *optional*): Ids of the candidates that a choice is made from, int64 `[n]`.
    """

    worker: int
    batch: dict[str, Tensor] | None = None
    place: Place | None = None
    ids: Tensor | None = None


class WorkerRows(IterableDataset[Handed]):
    """What a loader worker reads, for a loader with `batch_size=None`: a part of the rows, a super-batch at a time.

    A loader takes from its workers in turn, beginning with the first. In a pass that begins with another worker, each
    worker before that one hands over an empty item first, so that the turns go on as they would have.

    Args:
        rows ([`~jest_hf.data.streamed_rows.StreamedRows`]): This rank's part of the stream.
        collator (`Callable`): Makes a super-batch from a list of rows.
        n_rows (`int`): Rows that make a super-batch on this rank (n).
    """

    def __init__(
        self, rows: StreamedRows, collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]], n_rows: int
    ) -> None:
        self.rows = rows
        self.collator = collator
        self.n_rows = n_rows
        self._n_skipped = torch.zeros((), dtype=torch.int64)  # in shared memory, as the epoch of `StreamedRows`
        self._n_skipped.share_memory_()  # type: ignore[no-untyped-call]

    def set_pass(self, epoch: int, n_skipped: int = 0) -> None:
        """Set the next pass: its epoch, and how many of its first super-batches are not needed."""
        self.rows.set_epoch(epoch)
        self._n_skipped.fill_(n_skipped)

    def __iter__(self) -> Iterator[Handed]:
        worker, n_workers = worker_numbers()
        yield from self._until_its_turn(worker)
        rows = iter(self.rows)
        for number in count(worker, n_workers):  # in the pass, or a higher number: other workers may have ended
            read = list(islice(rows, self.n_rows))
            if len(read) < self.n_rows:
                return
            batch = {} if number < int(self._n_skipped) else self.collator(read)
            yield Handed(worker, batch, self.rows.place())

    def _until_its_turn(self, worker: int) -> Iterator[Handed]:
        start = self.rows.start
        if start is not None and start.epoch == self.rows.epoch and worker < start.next_worker:
            yield Handed(worker)


class StreamedBatches(IterableDataset[dict[str, Tensor]]):
    """The super-batches of a stream, pass after pass without end. Iterating is a collective.

    Each rank fetches a super-batch. If one rank gets none, all ranks start the next pass: super-batches that other
    ranks have fetched are dropped. Each loader worker drops an incomplete super-batch at the end of a pass.

    This class is a data set whose rows are super-batches, because accelerate makes a new loader from the data set in
    order to skip the super-batches of a resumed run. Read it in the training process (`num_workers=0,
    batch_size=None`); the workers are those of `loader`.

    Args:
        loader (`torch.utils.data.DataLoader`): Loader of [`WorkerRows`], with `batch_size=None`.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The processes that share the stream; by default this
            process alone.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Device of the tensors that the ranks exchange.
        n_skipped (`int`, *optional*, defaults to 0): The first steps, whose super-batches are not needed: they are
            empty. They are not read at all if the rows have a `start`, and otherwise not decoded.

    Attributes:
        positions (`dict[int, Position]`): By step, where the stream is after it, for the last steps; empty for a
            stream whose position is not known.

    Raises:
        ValueError: While iterating, on all ranks, if a pass holds not even one super-batch for every rank.
    """

    def __init__(
        self,
        loader: DataLoader[Handed],
        ranks: Ranks | None = None,
        device: torch.device | str = "cpu",
        n_skipped: int = 0,
    ) -> None:
        self.loader = loader
        self.worker_rows = cast(Any, loader.dataset)
        self.ranks = ranks or Ranks()
        self.device = device
        start = self.worker_rows.rows.start
        self.n_skipped = n_skipped if start is None else 0  # to be read and skipped
        self.positions: dict[int, Position] = {} if start is None else {start.step: start}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        start, n_workers = self.worker_rows.rows.start, self.loader.num_workers
        shared = self.ranks.size, n_workers, 0, [None] * max(1, n_workers)
        if start is None:
            start = Position(0, 0, 0, *shared)
        for _ in range(start.step):
            yield {}
        before = start.before
        for epoch in count(start.epoch):
            at = start if epoch == start.epoch else Position(before, epoch, before, *shared)
            self._keep(at)
            self.worker_rows.set_pass(epoch, self.n_skipped - before)
            step = yield from self._read_pass(at)
            if step == before:
                raise ValueError(
                    "the stream ended before every rank had a super-batch of "
                    f"{self.worker_rows.n_rows} rows (each loader worker fills its own super-batch); lower "
                    "per_device_train_batch_size, filter_ratio or dataloader_num_workers, or pass a longer stream."
                )
            before = step

    def _read_pass(self, at: Position) -> Generator[dict[str, Tensor], None, int]:
        """Yield the super-batches of a pass after a position, and return the number of its last step. A collective."""
        handed = (one for one in self.loader if one.batch is not None)
        while self._all_have(one := next(handed, None)) and one is not None:
            at = self._after(at, one)
            yield one.batch
        return at.step

    def _after(self, at: Position, one: Handed) -> Position:
        """Return the position after the super-batch of a worker, and keep it."""
        places = [one.place if worker == one.worker else place for worker, place in enumerate(at.places)]
        at = replace(at, step=at.step + 1, next_worker=(one.worker + 1) % len(places), places=places)
        self._keep(at)
        return at

    def _keep(self, at: Position) -> None:
        if self.worker_rows.rows.keeps_place:
            self.positions[at.step] = at
            self.positions.pop(at.step - KEPT, None)

    def _all_have(self, one: Handed | None) -> bool:
        return all(self.ranks.gather_counts(int(one is not None), self.device))


def load_stream(
    dataset: datasets.IterableDataset | IterableDataset[Any],
    collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    batch_size: int,
    *,
    image_column: str | None = None,
    ranks: Ranks | None = None,
    device: torch.device | str = "cpu",
    non_blocking: bool = False,
    n_skipped: int = 0,
    start: Position | None = None,
    **options: Any,
) -> DataLoader[dict[str, Tensor]]:
    """Make a loader of super-batches of a stream, for `Trainer.get_train_dataloader`. Iterating is a collective.

    Args:
        dataset, image_column, ranks: As in [`~jest_hf.data.streamed_rows.StreamedRows`].
        collator (`Callable`): Makes a super-batch from a list of rows.
        batch_size (`int`): Rows of a super-batch on one rank.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Device that super-batches are moved to.
        non_blocking (`bool`, *optional*, defaults to `False`): Whether to move them without waiting, from pinned
            memory.
        n_skipped (`int`, *optional*, defaults to 0): Steps that a resumed run has behind it. Their super-batches are
            empty, for `accelerate.skip_first_batches`.
        start ([`~jest_hf.data.position.Position`], *optional*): The position after these steps. Without it, but with
            `n_skipped`, the stream is read again from its beginning, and has no positions.
        options: Options of the torch `DataLoader`, such as `num_workers`, `pin_memory` and `prefetch_factor`.

    Returns:
        A loader of accelerate, which has no length and no end.
    """
    rows = rows_of(dataset, image_column, ranks, n_skipped, start)
    # Every pass draws a number. With the default generator, a resumed run would draw other numbers in training.
    generator = torch.Generator()
    loader: DataLoader[Handed] = DataLoader(
        WorkerRows(rows, collator, batch_size), batch_size=None, collate_fn=as_it_is, generator=generator, **options
    )
    return prepare_stream(StreamedBatches(loader, ranks, device, n_skipped), device, non_blocking)


def rows_of(
    dataset: Any, image_column: str | None, ranks: Ranks | None, n_skipped: int, start: Position | None
) -> Any:
    """The rows of a loader. A resumed run without a position reads rows again, in the order of `datasets` itself; all
    other runs keep positions."""
    return StreamedRows(dataset, image_column, ranks, keeps_place=start is not None or n_skipped == 0, start=start)


def prepare_stream(
    batches: StreamedBatches, device: torch.device | str, non_blocking: bool
) -> DataLoader[dict[str, Tensor]]:
    """Make accelerate's loader of the super-batches of a stream, which it moves to `device`."""
    # By default accelerate would read the stream on rank 0 only, or split it a second time.
    prepared: DataLoader[dict[str, Tensor]] = prepare_data_loader(
        DataLoader(batches, batch_size=None, collate_fn=as_it_is),
        torch.device(device),
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,
        non_blocking=non_blocking,
    )
    return prepared


def as_it_is(batch: Any) -> Any:
    """A `collate_fn` that changes nothing."""
    return batch
