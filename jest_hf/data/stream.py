# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Streams: data sets without a length, of which each process reads a part.

[`StreamedRows`] is one rank's part of the stream, which the rank's loader workers share. [`StreamedBatches`] makes
super-batches of these rows, and ends a pass over the stream on all ranks as soon as one rank has no rows left.
[`load_stream`] makes a loader from both.

For a `Trainer` all passes are ONE endless epoch, since the length of a stream is unknown. A resumed run skips the
super-batches that it was trained on before, and goes on with the right super-batch of the right pass.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import datasets
import torch
from accelerate.data_loader import prepare_data_loader
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from jest_hf.data.broken import BrokenRow
from jest_hf.data.undecoded import as_read, each_row, undecoded
from jest_hf.distributed import Ranks


def is_stream(dataset: Any) -> bool:
    """Return whether a data set is a stream, which can be read in order only."""
    return isinstance(dataset, datasets.IterableDataset | IterableDataset)


class StreamedRows(IterableDataset[dict[str, Any]]):
    """One rank's part of a stream, with `example_id` and `epoch` in every row and images undecoded as in [`Rows`].

    A `datasets.IterableDataset` is split by [`~datasets.distributed.split_dataset_by_node`] (by whole shards if their
    number is a multiple of the number of ranks), and loader workers share the shards of their rank. To shuffle it,
    call its `shuffle` with a seed: without a seed the processes shuffle differently, and their parts overlap. A torch
    `IterableDataset` is read row by row, every W-th row for each of W ranks, by at most one worker.

    Images stay encoded also below `map`, `filter` and the like, unless a function looks at them; a row for which such
    a function raises is a [`~jest_hf.data.broken.BrokenRow`], as in [`Rows`]. So is a row for which the iterator of a
    torch `IterableDataset` raises; a generator cannot go on after an error, and its error ends the run.

    An integer column `example_id` of the stream is kept. Without it each row gets a number that is unique in its pass
    over all ranks and workers, and the same again in a run with as many ranks and workers.

    Args:
        dataset (`datasets.IterableDataset` or `torch.utils.data.IterableDataset`): The whole stream, the same on every
            rank; rows are dicts.
        image_column (`str`, *optional*): Required column, checked at construction if the column names are known.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The processes that share the stream; by default this
            process alone.

    Raises:
        TypeError: If `dataset` is not a stream, or a row is not a dict.
        ValueError: If `image_column` is not a column of `dataset`, if `dataset` is already split by node, or if
            several workers read a torch `IterableDataset`.

    Example:

    ```python
    >>> import datasets
    >>> from jest_hf.data.stream import StreamedRows
    >>> stream = datasets.Dataset.from_dict({"text": ["a", "b"]}).to_iterable_dataset()
    >>> list(StreamedRows(stream))
    [{'text': 'a', 'example_id': 0, 'epoch': 0}, {'text': 'b', 'example_id': 1, 'epoch': 0}]

    ```
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset | IterableDataset[Any],
        image_column: str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if not is_stream(dataset):
            raise TypeError(
                f"{type(dataset).__module__}.{type(dataset).__name__} is not a stream; pass a "
                "`datasets.IterableDataset` or a torch `IterableDataset`."
            )
        ranks = ranks or Ranks()
        self.rank, self.n_ranks = ranks.rank, ranks.size  # not `ranks`: a process group cannot be sent to workers
        # In shared memory, so that persistent workers, which have a copy of this object, get a new epoch too.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # torch gives it no types
        if isinstance(dataset, datasets.IterableDataset):
            dataset = self._own_part(dataset, image_column)
        else:
            dataset = undecoded(dataset)
        self.dataset = dataset
        self.image_column = image_column

    def _own_part(self, dataset: datasets.IterableDataset, image_column: str | None) -> datasets.IterableDataset:
        columns = dataset.column_names
        if image_column is not None and columns is not None and image_column not in columns:
            raise ValueError(
                f"image_column={image_column!r} is not a column of the data set (there are: {', '.join(columns)}); "
                "pass the column of the images to the data collator as image_column."
            )
        if dataset._distributed is not None and self.n_ranks > 1:
            raise ValueError(
                f"the stream is already split by node, and a second split over {self.n_ranks} ranks would lose rows; "
                "pass the whole stream, without split_dataset_by_node."
            )
        dataset = undecoded(dataset.with_format(None))
        return split_dataset_by_node(dataset, self.rank, self.n_ranks) if self.n_ranks > 1 else dataset

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (`int`, from 0) of the next pass, which decides how a `datasets.IterableDataset` shuffles."""
        self._epoch.fill_(epoch)
        # Not in the workers: the epoch of the stream is in shared memory too, and several writers would race.
        if isinstance(self.dataset, datasets.IterableDataset):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = int(self._epoch)
        worker = get_worker_info()
        worker_id, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rows: Iterable[Any] = self.dataset
        if not isinstance(self.dataset, datasets.IterableDataset):
            set_epoch = getattr(self.dataset, "set_epoch", None)  # not part of torch's class, but common in data sets
            if set_epoch is not None:
                set_epoch(epoch)
            if n_workers > 1:
                raise ValueError(
                    f"dataloader_num_workers={n_workers} would read every row of a torch IterableDataset {n_workers} "
                    "times; set dataloader_num_workers to 0 or 1, or pass a datasets.IterableDataset, whose shards "
                    "the workers share."
                )
            rows = islice(each_row(self.dataset), self.rank, None, self.n_ranks)
        for position, row in enumerate(rows):
            number = (position * n_workers + worker_id) * self.n_ranks + self.rank
            yield _with_ids(row, epoch, number, self.image_column)


class StreamedBatches(IterableDataset[dict[str, Tensor]]):
    """The super-batches of a stream, pass after pass without end. Iterating is a collective.

    Each rank fetches a super-batch. If one rank gets none, all ranks start the next pass: super-batches that other
    ranks have fetched are dropped. Each loader worker drops an incomplete super-batch at the end of a pass.

    This class is a data set whose rows are super-batches, because accelerate makes a new loader from the data set in
    order to skip the super-batches of a resumed run. Read it in the training process (`num_workers=0,
    batch_size=None`); the workers are those of `loader`.

    Args:
        loader (`torch.utils.data.DataLoader`): Loader of [`StreamedRows`], with `drop_last=True`.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The processes that share the stream; by default this
            process alone.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Device of the tensors that the ranks exchange.

    Raises:
        ValueError: While iterating, on all ranks, if a pass holds not even one super-batch for every rank.
    """

    def __init__(
        self, loader: DataLoader[dict[str, Any]], ranks: Ranks | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.loader = loader
        self.ranks = ranks or Ranks()
        self.device = device

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rows: Any = self.loader.dataset
        n_before = 0
        for epoch in count():
            rows.set_epoch(epoch)
            n_batches = yield from self._read_pass(epoch, n_before)
            n_before += n_batches
            if n_batches == 0:
                raise ValueError(
                    f"the stream ended before every rank had a super-batch of {self._n_rows} rows (each loader worker "
                    "fills its own super-batch); lower per_device_train_batch_size, filter_ratio or "
                    "dataloader_num_workers, or pass a longer stream."
                )

    @property
    def _n_rows(self) -> int | None:
        """Rows that a worker reads for a super-batch."""
        return self.loader.batch_size

    def _read_pass(self, epoch: int, n_before: int) -> Generator[dict[str, Tensor], None, int]:
        """Yield the super-batches of a pass, which follow `n_before` others, and return their number. A collective."""
        batches = iter(self.loader)
        n_batches = 0
        while self._all_have(batch := next(batches, None)) and batch is not None:
            n_batches += 1
            yield batch
        return n_batches

    def _all_have(self, batch: dict[str, Tensor] | None) -> bool:
        return all(self.ranks.gather_counts(int(batch is not None), self.device))


def load_stream(
    dataset: datasets.IterableDataset | IterableDataset[Any],
    collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    batch_size: int,
    *,
    image_column: str | None = None,
    ranks: Ranks | None = None,
    device: torch.device | str = "cpu",
    non_blocking: bool = False,
    **options: Any,
) -> DataLoader[dict[str, Tensor]]:
    """Make a loader of super-batches of a stream, for `Trainer.get_train_dataloader`. Iterating is a collective.

    Args:
        dataset, image_column, ranks: As in [`StreamedRows`].
        collator (`Callable`): Makes a super-batch from a list of rows.
        batch_size (`int`): Rows of a super-batch on one rank.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Device that super-batches are moved to.
        non_blocking (`bool`, *optional*, defaults to `False`): Whether to move them without waiting, from pinned
            memory.
        options: Options of the torch `DataLoader`, such as `num_workers`, `pin_memory` and `prefetch_factor`.

    Returns:
        A loader of accelerate, which has no length and no end.
    """
    rows = StreamedRows(dataset, image_column, ranks)
    # Every pass draws a number. With the default generator, a resumed run would draw other numbers in training.
    generator = torch.Generator()
    loader = DataLoader(rows, batch_size, collate_fn=collator, drop_last=True, generator=generator, **options)
    return prepare_stream(StreamedBatches(loader, ranks, device), device, non_blocking)


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


def _with_ids(row: Any, epoch: int, number: int, image_column: str | None) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise TypeError(
            f"A row of the stream is a {type(row).__name__}; return each row as a dict such as {{'image': ..., "
            "'text': ...}."
        )
    own = row.get("example_id")
    added = {"example_id": int(own) if isinstance(own, numbers.Integral) else number, "epoch": epoch}
    row = as_read(row, image_column)
    if not -(2**63) <= added["example_id"] < 2**63:
        added["example_id"], row = number, BrokenRow(f"example_id={own} does not fit in 64 bits")
    return BrokenRow(row.reason, **added) if isinstance(row, BrokenRow) else {**row, **added}
