# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of a stream that one process reads: [`StreamedRows`] is one rank's part, which its loader workers share."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info

from jest_hf.data.broken import BrokenRow
from jest_hf.data.continued import OTHER_STREAM, check_seeds, continued
from jest_hf.data.fingerprint import SAMPLED_ROWS
from jest_hf.data.position import Place, Position
from jest_hf.data.undecoded import as_read, each_row, undecoded
from jest_hf.distributed import Ranks


def is_stream(dataset: Any) -> bool:
    """Return whether a data set is a stream, which can be read in order only."""
    return isinstance(dataset, datasets.IterableDataset | IterableDataset)


def first_streamed(stream: Any, image_column: str) -> Mapping[str, Any]:
    """Return the first row of a stream that can be read, undecoded and without keys of [`StreamedRows`]; an empty row
    for a stream without rows.

    Raises:
        ValueError: if none of the first 256 rows can be read.
    """
    if isinstance(stream, datasets.IterableDataset):
        stream = stream.with_format(None)
    row: Mapping[str, Any] = {}
    for row in islice(each_row(undecoded(stream)), SAMPLED_ROWS):
        if not isinstance(row := as_read(row, image_column), BrokenRow):
            return row
    if isinstance(row, BrokenRow):
        raise ValueError(
            f"none of the first {SAMPLED_ROWS} rows of the stream train_dataset can be read ({row.reason}); check "
            "what it reads."
        )
    return row


class StreamedRows(IterableDataset[dict[str, Any]]):
    """One rank's part of a stream, with `example_id` and `epoch` in every row and images undecoded as in [`Rows`].

    A `datasets.IterableDataset` is split by [`~datasets.distributed.split_dataset_by_node`] (by whole shards if their
    number is a multiple of the number of ranks), and loader workers share the shards of their rank. A torch
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
        keeps_place (`bool`, *optional*, defaults to `False`): Whether [`~StreamedRows.place`] leads to the next row of
            a `datasets.IterableDataset`. `shuffle(buffer_size=...)` then shuffles within blocks of at most
            `buffer_size` rows ([`~jest_hf.data.continued.BlockShuffled`]).
        start ([`~jest_hf.data.position.Position`], *optional*): Where to begin; by default at the beginning.

    Raises:
        TypeError: If `dataset` is not a stream, or a row is not a dict.
        ValueError: If `image_column` is not a column of `dataset`, if `dataset` is already split by node or shuffled
            without a seed, if `start` is the position in another stream, or if several workers read a torch
            `IterableDataset`.

    Example:

    ```python
    >>> import datasets
    >>> from jest_hf.data.streamed_rows import StreamedRows
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
        keeps_place: bool = False,
        start: Position | None = None,
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
        self.keeps_place = keeps_place and isinstance(dataset, datasets.IterableDataset)
        self.start = start
        if start is not None and not self.keeps_place:
            raise ValueError(OTHER_STREAM)
        self._n_read = 0
        if isinstance(dataset, datasets.IterableDataset):
            check_seeds(dataset)
            dataset = self._own_part(continued(dataset) if keeps_place else dataset, image_column)
        else:
            dataset = undecoded(dataset)
        self.dataset: Any = dataset
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

    @property
    def epoch(self) -> int:
        """The epoch of the pass, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (`int`, from 0) of the next pass, which decides how a `datasets.IterableDataset` shuffles."""
        self._epoch.fill_(epoch)
        # Not in the workers: the epoch of the stream is in shared memory too, and several writers would race.
        if isinstance(self.dataset, datasets.IterableDataset):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.epoch
        worker_id, n_workers = worker_numbers()
        rows: Iterable[Any] = self.dataset
        self._n_read = 0
        start = self.start
        if start is not None and start.epoch == epoch and (place := start.places[worker_id]) is not None:
            self._n_read = place.n_rows
            self.dataset.load_state_dict(place.state)
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
        for row in rows:
            number = (self._n_read * n_workers + worker_id) * self.n_ranks + self.rank
            self._n_read += 1
            yield _with_ids(row, epoch, number, self.image_column)

    def place(self) -> Place | None:
        """Return where this process (or loader worker) is, after the row that it read last; `None` if that is not
        known. A place leads to the next row."""
        return Place(self._n_read, self.dataset.state_dict()) if self.keeps_place else None


def worker_numbers() -> tuple[int, int]:
    """The number of this loader worker, and how many there are."""
    worker = get_worker_info()
    return (0, 1) if worker is None else (worker.id, worker.num_workers)


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


__all__ = ["StreamedRows", "first_streamed", "is_stream", "worker_numbers"]
