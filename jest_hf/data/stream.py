# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of a stream: data without a length, of which each process reads its own part.

[`StreamedRows`] is one rank's part of the stream, and each of the rank's loader workers reads a part of that.
[`StreamedBatches`] is what a loader makes of it, with what the ranks have to agree about: a pass over the stream ends
for all of them with the first that runs dry, and the next begins. [`load_stream`] puts the two into a loader.

To a `Trainer` these passes are ONE endless epoch. It counts that way itself (of a stream it knows `max_steps` and
nothing else), and it is what makes a resumed run exact: skipping the batches that were trained on leads to the right
batch of the right pass.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import datasets
import torch
from accelerate.data_loader import prepare_data_loader
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from jest_hf.data.rows import undecoded
from jest_hf.distributed import Ranks


def is_stream(dataset: Any) -> bool:
    """Whether a data set can be read in order only."""
    return isinstance(dataset, datasets.IterableDataset | IterableDataset)


class StreamedRows(IterableDataset[dict[str, Any]]):
    """
    One rank's part of a stream, its rows labelled with `example_id` and `epoch`, images undecoded as in [`Rows`].

    A `datasets.IterableDataset` is split by [`~datasets.distributed.split_dataset_by_node`] (whole shards where their
    number allows it), and loader workers share a rank's shards. To have it shuffled, call its `shuffle` with a seed:
    without one each process would shuffle by its own, and they would read each other's rows. Of a torch
    `IterableDataset` a rank takes every W-th row, and one worker at most can read it.

    The `example_id` of a row is its own where it has an integer column of that name; otherwise it is a number that no
    other row of this pass has on any rank and in any worker: the same on a re-run with as many ranks and workers.

    Args:
        dataset (`datasets.IterableDataset` or `torch.utils.data.IterableDataset`): The whole stream, the same on every
            rank; rows are dicts.
        image_column (`str`, *optional*): Column that has to be there; checked now where the columns are known.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): Who shares the stream; `None` is this process alone.

    Raises:
        TypeError: If `dataset` is no stream, or a row is no dict.
        ValueError: If `image_column` is not a column of `dataset`, if it is split by node already, or if several
            workers are to read a torch `IterableDataset`.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset | IterableDataset[Any],
        image_column: str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if not is_stream(dataset):
            raise TypeError(
                f"{type(dataset).__module__}.{type(dataset).__name__} is no stream; pass a `datasets.IterableDataset` "
                "or a torch `IterableDataset`."
            )
        ranks = ranks or Ranks()
        self.rank, self.n_ranks = ranks.rank, ranks.size  # no group: the object travels to loader workers
        # In shared memory: persistent workers, which got their copy long ago, see it too.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # torch gives it no types
        if isinstance(dataset, datasets.IterableDataset):
            dataset = self._own_part(dataset, image_column)
        self.dataset = dataset

    def _own_part(self, dataset: datasets.IterableDataset, image_column: str | None) -> datasets.IterableDataset:
        columns = dataset.column_names
        if image_column is not None and columns is not None and image_column not in columns:
            raise ValueError(
                f"image_column={image_column!r} is not a column of the data set (there are: {', '.join(columns)}); "
                "name the column of the images as the data collator's image_column."
            )
        if dataset._distributed is not None and self.n_ranks > 1:
            raise ValueError(
                f"the stream is split by node already, and splitting it again over {self.n_ranks} ranks would leave "
                "out rows; pass the whole stream, without split_dataset_by_node."
            )
        dataset = undecoded(dataset.with_format(None))
        return split_dataset_by_node(dataset, self.rank, self.n_ranks) if self.n_ranks > 1 else dataset

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (`int`, from 0) of the next pass; it decides how a `datasets.IterableDataset` is shuffled."""
        self._epoch.fill_(epoch)
        # Here alone: that epoch is in shared memory too, and workers that all set it at once add up their changes.
        if isinstance(self.dataset, datasets.IterableDataset):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = int(self._epoch)
        worker = get_worker_info()
        worker_id, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rows: Iterable[Any] = self.dataset
        if not isinstance(self.dataset, datasets.IterableDataset):
            set_epoch = getattr(self.dataset, "set_epoch", None)  # torch knows no such method, data sets often do
            if set_epoch is not None:
                set_epoch(epoch)
            if n_workers > 1:
                raise ValueError(
                    f"dataloader_num_workers={n_workers} would read every row of a torch IterableDataset {n_workers} "
                    "times; set it to 0 or 1, or pass a datasets.IterableDataset, whose shards workers share."
                )
            rows = islice(self.dataset, self.rank, None, self.n_ranks)
        for position, row in enumerate(rows):
            yield _labelled(row, epoch, (position * n_workers + worker_id) * self.n_ranks + self.rank)


class StreamedBatches(IterableDataset[dict[str, Tensor]]):
    """
    The super-batches of a stream, without end: pass after pass, as long as every rank has one.

    Each rank fetches a super-batch and says whether it got one; where one did not, all ranks start the next pass.
    Super-batches that others had fetched by then are dropped, and so are incomplete ones, of each loader worker.

    It is a data set, whose rows are batches, because accelerate builds a loader anew from its data set to skip what a
    resumed run has seen: what is agreed on has to survive that. Read it in the process that trains
    (`num_workers=0, batch_size=None`); the workers are those of `loader`.

    Args:
        loader (`torch.utils.data.DataLoader`): Over [`StreamedRows`], with `drop_last=True`.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): Who shares the stream; `None` is this process alone.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Where tensors have to be to travel between ranks.

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
        for epoch in count():
            rows.set_epoch(epoch)
            n_batches = 0
            batches = iter(self.loader)
            while self._all_have(batch := next(batches, None)) and batch is not None:
                n_batches += 1
                yield batch
            if n_batches == 0:
                raise ValueError(
                    f"the stream ended before every rank had a super-batch of {self.loader.batch_size} rows (each "
                    "loader worker fills its own); lower per_device_train_batch_size, filter_ratio or "
                    "dataloader_num_workers, or bring more data."
                )

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
    **options: Any,
) -> DataLoader[dict[str, Tensor]]:
    """
    Super-batches of a stream, as a `Trainer` wants them of its `get_train_dataloader`.

    Args:
        dataset, image_column, ranks: As in [`StreamedRows`].
        collator (`Callable`): Makes a super-batch of rows.
        batch_size (`int`): Rows of a super-batch on one rank.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Where the super-batches are to be.
        options: Of the torch `DataLoader`: `num_workers`, `pin_memory`, `prefetch_factor` and the like.

    Returns:
        A loader of accelerate, without a length and without an end.
    """
    rows = StreamedRows(dataset, image_column, ranks)
    # Of its own: every pass draws a number, and a resumed run would find the training's generator elsewhere.
    generator = torch.Generator()
    loader = DataLoader(rows, batch_size, collate_fn=collator, drop_last=True, generator=generator, **options)
    batches = DataLoader(StreamedBatches(loader, ranks, device), batch_size=None, collate_fn=_as_it_is)
    # Left to itself, accelerate would read a stream on rank 0 alone, or split a second time what is split already.
    prepared: DataLoader[dict[str, Tensor]] = prepare_data_loader(
        batches,
        torch.device(device),
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,
    )
    return prepared


def _as_it_is(batch: Any) -> Any:
    return batch


def _labelled(row: Any, epoch: int, number: int) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise TypeError(
            f"A row of the stream is a {type(row).__name__}; make each a dict such as {{'image': ..., 'text': ...}}."
        )
    own = row.get("example_id")
    return {**row, "example_id": int(own) if isinstance(own, numbers.Integral) else number, "epoch": epoch}
