# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows by key: which example, in which epoch.

Loader workers share no state, so whatever depends on the epoch (the order, the caption drawn from several) has to
travel with the request. [`EpochSampler`] therefore yields `(epoch, index)` keys, and [`Rows`] answers a key with the
row plus its `example_id` and `epoch`. Everything downstream is a function of the row alone, which is what makes a
resumed run see the same examples.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset, IterableDataset, Sampler

from jest_hf.distributed import Ranks


Key = int | tuple[int, int]


class EpochSampler(Sampler[tuple[int, int]]):
    """
    Yields every index once per epoch as `(epoch, index)`, in an order that depends on `(seed, epoch)` and nothing
    else.

    Args:
        n_rows (`int`): Number of rows of the data set.
        seed (`int`): Seed of the order; the global random state is neither read nor changed.
    """

    def __init__(self, n_rows: int, seed: int) -> None:
        if n_rows < 1:
            raise ValueError(f"n_rows is {n_rows}: the training data set has no rows; pass one that has at least one.")
        self.n_rows = n_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (`int`, from 0) of the next pass over the sampler."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        generator = np.random.default_rng([self.seed % 2**64, epoch])
        for index in generator.permutation(self.n_rows):
            yield epoch, int(index)

    def __len__(self) -> int:
        return self.n_rows


def share_batches(n_rows: int, batch_size: int, ranks: Ranks | None = None) -> list[range]:
    """
    This rank's batches of row numbers, to go once over all rows: a `batch_sampler` for a torch `DataLoader`.

    The batches are those of a single process, and each rank has a run of them, so that what is gathered in the order
    of ranks is in the order of rows. Every rank gets the same number of batches, because engines make every forward a
    collective: where they do not suffice, the last ranks get EMPTY ones, which a collator has to make an input of.

    Args:
        n_rows (`int`): Number of rows.
        batch_size (`int`): Rows in a batch; the last batch of all may have fewer.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): Who shares them; `None` is this process alone.

    Returns:
        `list[range]`: `ceil(ceil(n_rows / batch_size) / W)` batches.
    """
    ranks = ranks or Ranks()
    batches = [range(start, min(start + batch_size, n_rows)) for start in range(0, n_rows, batch_size)]
    share = -(-len(batches) // ranks.size)
    own = batches[ranks.rank * share : (ranks.rank + 1) * share]
    return own + [range(0)] * (share - len(own))


class Rows(Dataset[dict[str, Any]]):
    """
    Map-style view of a data set whose rows carry their `example_id` and `epoch`.

    A `datasets.Image` column comes out undecoded (`{"bytes", "path"}`): a corrupt file then surfaces in the collator,
    which skips and counts it, and not in the data set, where it would end the run. A `datasets.Dataset` with
    `with_format("torch")` and the like is read as plain Python objects for the same reason; one with `set_transform`
    is left alone, for the transform is the user's.

    Args:
        dataset (`datasets.Dataset`, `torch.utils.data.Dataset` or sequence of `dict`): Map-style data; rows are dicts.
        image_column (`str`, *optional*): Column that has to be there; checked now where the columns are known.

    Raises:
        TypeError: If `dataset` is iterable-style, or a row is not a dict.
        ValueError: If `image_column` is not a column of `dataset`.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | Dataset[Any] | Sequence[Mapping[str, Any]],
        image_column: str | None = None,
    ) -> None:
        _require_map_style(dataset)
        if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
            dataset = undecoded(dataset.with_format(None))
            if image_column is not None and image_column not in dataset.column_names:
                raise ValueError(
                    f"image_column={image_column!r} is not a column of the data set (there are: "
                    f"{', '.join(dataset.column_names)}); name the column of the images as the data collator's "
                    "image_column."
                )
        self.dataset: Any = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The row at `key` (`int` index, epoch 0, or `(epoch, index)`), with `example_id` and `epoch` added."""
        epoch, index = self._split(key)
        return _labelled(self.dataset[index], epoch, index)

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """The rows at `keys`, in one read of a `datasets.Dataset`. Called by torch's `DataLoader`."""
        pairs = [self._split(key) for key in keys]
        indices = [index for _, index in pairs]
        if isinstance(self.dataset, datasets.Dataset):
            rows = self.dataset.__getitems__(indices)
        else:
            rows = [self.dataset[index] for index in indices]
        return [_labelled(row, epoch, index) for row, (epoch, index) in zip(rows, pairs, strict=True)]

    def _split(self, key: Key) -> tuple[int, int]:
        epoch, index = key if isinstance(key, tuple) else (0, operator.index(key))
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} of a data set of {len(self)} rows.")
        return epoch, index

    def __repr__(self) -> str:
        return f"Rows({type(self.dataset).__module__}.{type(self.dataset).__name__}, n_rows={len(self)})"


def _require_map_style(dataset: Any) -> None:
    """Refuse what cannot be read by index."""
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"{type(dataset).__name__} holds several data sets ({', '.join(map(str, dataset))}); pass one of them, "
            f"such as dataset[{next(iter(dataset), 'train')!r}], or give load_dataset a split."
        )
    iterable_style = isinstance(dataset, datasets.IterableDataset | IterableDataset)
    map_style = isinstance(dataset, datasets.Dataset | Dataset | Sequence) and not isinstance(dataset, str | bytes)
    if iterable_style or not map_style:
        raise TypeError(
            f"{type(dataset).__module__}.{type(dataset).__name__} cannot be read by index (an `IterableDataset` is "
            "good for training alone); pass a map-style data set: a `datasets.Dataset` "
            "(`datasets.Dataset.from_generator` makes one of a stream), a torch `Dataset` or a list of dicts."
        )


def undecoded(dataset: datasets.Dataset | datasets.IterableDataset) -> datasets.Dataset | datasets.IterableDataset:
    """The same data with every image column read as bytes or path. Only the schema changes: nothing is rewritten."""
    for name, feature in (dataset.features or {}).items():  # of a stream they may be unknown
        if isinstance(feature, datasets.Image) and feature.decode:
            dataset = dataset.cast_column(name, datasets.Image(mode=feature.mode, decode=False))
    return dataset


def _labelled(row: Any, epoch: int, index: int) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise TypeError(
            f"Row {index} is a {type(row).__name__}; make each row a dict such as {{'image': ..., 'text': ...}}."
        )
    return {**row, "example_id": index, "epoch": epoch}
