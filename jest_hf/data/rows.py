# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows by key, where a key is an epoch and an index.

Loader workers share no state, so everything that depends on the epoch (the order of rows, the draw among several
captions) must be part of the request. [`EpochSampler`] therefore yields `(epoch, index)` keys, and [`Rows`] returns
the row of a key with `example_id` and `epoch` added. All later stages are functions of the row, so that a resumed run
gets the same examples.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Sampler, Subset

from jest_hf.data.broken import BrokenRow, reason_of
from jest_hf.data.columns import with_image
from jest_hf.data.image_cache import ImageCache
from jest_hf.data.undecoded import undecoded
from jest_hf.distributed import Ranks
from jest_hf.images.reading import with_mode


Key = int | tuple[int, int]


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields every index once per epoch as `(epoch, index)`, in an order that depends on `(seed, epoch)` only.

    Args:
        n_rows (`int`): Number of rows of the data set.
        seed (`int`): Seed of the order. The global random state is neither read nor changed.

    Raises:
        ValueError: If `n_rows` is below 1.

    Example:

    ```python
    >>> from jest_hf.data.rows import EpochSampler
    >>> sampler = EpochSampler(n_rows=3, seed=0)
    >>> list(sampler)
    [(0, 2), (0, 0), (0, 1)]
    >>> sampler.set_epoch(1)
    >>> list(sampler)
    [(1, 2), (1, 0), (1, 1)]

    ```
    """

    def __init__(self, n_rows: int, seed: int) -> None:
        if n_rows < 1:
            raise ValueError(f"n_rows={n_rows}: the training data set has no rows; pass a data set with at least one.")
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
    """Return this rank's batches of row numbers for one pass over all rows.

    The result is a `batch_sampler` for a torch `DataLoader`. The batches are those of a single process. Each rank gets
    consecutive batches, so that results gathered in the order of ranks are in the order of rows. Every rank gets the
    same number of batches, since a forward is a collective under some engines: if there are too few batches, the last
    ranks get EMPTY ones, for which a collator must make a blank row.

    Args:
        n_rows (`int`): Number of rows.
        batch_size (`int`): Rows in a batch; the last batch of all may have fewer.
        ranks ([`~jest_hf.distributed.Ranks`], *optional*): The processes that share the rows; by default this process
            alone.

    Returns:
        `list[range]`: `ceil(ceil(n_rows / batch_size) / W)` batches on each of W ranks.

    Example:

    ```python
    >>> from jest_hf.data.rows import share_batches
    >>> share_batches(n_rows=10, batch_size=4)
    [range(0, 4), range(4, 8), range(8, 10)]

    ```
    """
    ranks = ranks or Ranks()
    batches = [range(start, min(start + batch_size, n_rows)) for start in range(0, n_rows, batch_size)]
    share = -(-len(batches) // ranks.size)
    own = batches[ranks.rank * share : (ranks.rank + 1) * share]
    return own + [range(0)] * (share - len(own))


class Rows(Dataset[dict[str, Any]]):
    """A map-style data set with `example_id` and `epoch` in every row.

    A `datasets.Image` column is returned undecoded (`{"bytes", "path"}`, and `"mode"` if the feature has one): the
    collator decodes it, and can skip and count a corrupt file, which would otherwise end the run. For the same reason
    the format of a `datasets.Dataset` (`with_format("torch")`) is ignored. A transform (`set_transform`) is applied as
    it is. A torch `Subset` of a `datasets.Dataset` is replaced by the rows themselves.

    A row whose reading raises, or that is `None`, becomes a [`~jest_hf.data.broken.BrokenRow`], which collators skip
    and count.

    If `image_column` is the name of a format, as in webdataset, and a row has its image in the column of another
    format (`png` in place of `jpg`), the image is returned in `image_column` too.

    Args:
        dataset (`datasets.Dataset`, `torch.utils.data.Dataset` or sequence of `dict`): Map-style data; rows are dicts.
        image_column (`str`, *optional*): Required column, checked at construction if the column names are known.

    Raises:
        TypeError: If `dataset` is iterable-style, or a row is not a dict.
        ValueError: If `image_column` is not a column of `dataset`.

    Example:

    ```python
    >>> from jest_hf.data.rows import Rows
    >>> rows = Rows([{"text": "a"}, {"text": "b"}])
    >>> rows[1]
    {'text': 'b', 'example_id': 1, 'epoch': 0}
    >>> rows[5, 0]
    {'text': 'a', 'example_id': 0, 'epoch': 5}

    ```
    """

    def __init__(
        self,
        dataset: datasets.Dataset | Dataset[Any] | Sequence[Mapping[str, Any]],
        image_column: str | None = None,
    ) -> None:
        _require_map_style(dataset)
        dataset = _unwrapped(dataset, image_column)
        self.image_column = image_column
        self._modes: dict[str, str] = {}  # of images, by column
        if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
            self._modes = modes_of(dataset)
            dataset = undecoded(dataset.with_format(None))
            if image_column is not None and image_column not in dataset.column_names:
                raise ValueError(
                    f"image_column={image_column!r} is not a column of the data set (there are: "
                    f"{', '.join(dataset.column_names)}); pass the column of the images to the data collator as "
                    "image_column."
                )
        self.dataset: Any = dataset
        self.images: ImageCache | None = None

    def with_images(self, images: ImageCache) -> Rows:
        """Return the same rows with the images of a cache: image files are then neither read nor decoded.

        Only a `datasets.Dataset` can leave the column of the images out. The rows of other data sets are read whole,
        and their images replaced.

        Args:
            images ([`~jest_hf.data.image_cache.ImageCache`]): A whole cache of the images of these rows.

        Raises:
            ValueError: for a cache of another number of rows.
        """
        if images.n_rows != len(self):
            raise ValueError(
                f"the image cache in {images.folder} has {images.n_rows} rows, and the data set has {len(self)}; "
                "set image_cache to a cache of these data."
            )
        other = copy.copy(self)
        other.images = images
        if isinstance(self.dataset, datasets.Dataset) and images.image_column in self.dataset.column_names:
            other.dataset = self.dataset.remove_columns([images.image_column])
        return other

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """Return the row at `key`: `(epoch, index)`, or `index` for epoch 0."""
        epoch, index = self._split(key)
        return self._complete(self._read(index), epoch, index)

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """Return the rows at `keys`, in one read of a `datasets.Dataset`. Torch's `DataLoader` calls this method."""
        pairs = [self._split(key) for key in keys]
        indices = [index for _, index in pairs]
        if self.images is not None:
            self.images.prefetch(indices)
        rows = None
        if isinstance(self.dataset, datasets.Dataset):
            try:
                rows = self.dataset.__getitems__(indices)
            except MemoryError:
                raise
            except Exception:  # of which row is seen when they are read one by one
                rows = None
        if rows is None:
            rows = [self._read(index) for index in indices]
        return [self._complete(row, epoch, index) for row, (epoch, index) in zip(rows, pairs, strict=True)]

    def _read(self, index: int) -> Any:
        """Return a row as the data set gives it, or why it does not."""
        try:
            row = self.dataset[index]
        except MemoryError:
            raise
        except Exception as error:  # of a data set of the user, or of `datasets` below a transform
            return BrokenRow(reason_of(error))
        return BrokenRow("the data set returns None for the row") if row is None else row

    def _complete(self, row: Any, epoch: int, index: int) -> dict[str, Any]:
        if isinstance(row, BrokenRow):
            return BrokenRow(row.reason, example_id=index, epoch=epoch)
        if not isinstance(row, Mapping):
            raise TypeError(
                f"Row {index} is a {type(row).__name__}; return each row as a dict such as {{'image': ..., 'text': "
                "...}."
            )
        images, row = self.images, with_image(row, self.image_column)
        changed = {name: with_mode(row[name], mode) for name, mode in self._modes.items() if name in row}
        if images is not None:
            changed[images.image_column] = images.image(index)
        return {**row, **changed, "example_id": index, "epoch": epoch}

    def _split(self, key: Key) -> tuple[int, int]:
        epoch, index = key if isinstance(key, tuple) else (0, operator.index(key))
        if not 0 <= index < len(self):
            raise IndexError(f"index={index} is out of range for {len(self)} rows; pass 0 to {len(self) - 1}.")
        return epoch, index

    def __repr__(self) -> str:
        return f"Rows({type(self.dataset).__module__}.{type(self.dataset).__name__}, n_rows={len(self)})"


def _require_map_style(dataset: Any) -> None:
    """Raise `TypeError` for data that cannot be read by index."""
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"{type(dataset).__name__} holds several data sets ({', '.join(map(str, dataset))}); pass one of them, "
            f"such as dataset[{next(iter(dataset), 'train')!r}], or call load_dataset with split=."
        )
    iterable_style = isinstance(dataset, datasets.IterableDataset | IterableDataset)
    map_style = isinstance(dataset, datasets.Dataset | Dataset | Sequence) and not isinstance(dataset, str | bytes)
    if iterable_style or not map_style:
        raise TypeError(
            f"{type(dataset).__module__}.{type(dataset).__name__} cannot be read by index (an `IterableDataset` can "
            "be used for training only); pass a map-style data set: a `datasets.Dataset` (made from a stream by "
            "`datasets.Dataset.from_generator`), a torch `Dataset` or a list of dicts."
        )


def _unwrapped(dataset: Any, image_column: str | None) -> Any:
    """Return the same rows, with a torch `Subset` of a `datasets.Dataset` as a `datasets.Dataset`, which below a torch
    data set would decode the images."""
    if type(dataset) is Subset:
        inner = _unwrapped(dataset.dataset, image_column)
        if isinstance(inner, datasets.Dataset):
            indices = np.asarray(dataset.indices, dtype=np.int64)
            return inner.select(np.where(indices < 0, indices + len(inner), indices))
        return Subset(inner, dataset.indices)
    if type(dataset) is ConcatDataset:
        return ConcatDataset([Rows(one, image_column) for one in dataset.datasets])
    return dataset


def modes_of(dataset: datasets.Dataset) -> dict[str, str]:
    """Return the modes of features such as `datasets.Image(mode="L")`, by column."""
    images = {name: one for name, one in dataset.features.items() if isinstance(one, datasets.Image)}
    return {name: one.mode for name, one in images.items() if one.mode is not None}


__all__ = ["EpochSampler", "Key", "Rows", "modes_of", "share_batches", "undecoded"]
