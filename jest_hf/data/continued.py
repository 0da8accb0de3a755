# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A `datasets.IterableDataset` that goes on, in another process, with the row after the last one that was read.

`IterableDataset.state_dict()` says where every source of a stream is, and `load_state_dict()` goes there. Two things
are missing, and are nodes of the stream here:

- The state does not hold the rows in the buffer of `shuffle(buffer_size=...)`. [`BlockShuffled`] takes the place of
  that buffer: it shuffles block by block, and the state has the position at the beginning of a block. A block is read
  again when a run goes on, and is shuffled in the same order.
- A loader worker loads the state twice: into the stream of its rank, which has other sources, and into its own part
  of it. [`Continued`], the last node, loads it once, when rows are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy, deepcopy
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from datasets.iterable_dataset import BufferShuffledExamplesIterable, _BaseExamplesIterable


OTHER_STREAM = (
    "resume_from_checkpoint: the checkpoint has the position in a stream that is built in another way; build "
    "train_dataset as in the run that saved the checkpoint."
)
LARGEST_SEED = 64  # bits; numpy draws 128 bits where no seed is given


def continued(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    """Return the same stream, whose `state_dict` leads to the next row also after `shuffle(buffer_size=...)`.

    Such a stream has the rows in another order than `dataset`: within blocks of at most `buffer_size` rows.

    Args:
        dataset (`datasets.IterableDataset`): The stream. It is left as it is.
    """
    dataset = dataset.with_format(None)  # a new object
    dataset._ex_iterable = Continued(_in_blocks(dataset._ex_iterable))
    return dataset.with_format(None)  # makes its first state of the new nodes


def _in_blocks(node: Any) -> Any:
    node = copy(node)
    if hasattr(node, "ex_iterable"):
        node.ex_iterable = _in_blocks(node.ex_iterable)
    if hasattr(node, "ex_iterables"):
        node.ex_iterables = [_in_blocks(one) for one in node.ex_iterables]
    return BlockShuffled.of(node) if isinstance(node, BufferShuffledExamplesIterable) else node


def check_seeds(dataset: datasets.IterableDataset) -> None:
    """
    Refuse a stream that is shuffled, or interleaved at random, without a seed: each process would read other rows.

    Raises:
        ValueError: for such a stream.
    """
    nodes = [dataset._ex_iterable]
    while nodes:
        node: Any = nodes.pop()
        nodes += [*getattr(node, "ex_iterables", ()), *([node.ex_iterable] if hasattr(node, "ex_iterable") else ())]
        seed = getattr(getattr(getattr(node, "generator", None), "bit_generator", None), "seed_seq", None)
        entropy = getattr(seed, "entropy", None)
        if isinstance(entropy, int) and entropy.bit_length() > LARGEST_SEED:
            raise ValueError(
                "train_dataset is a stream that is shuffled or interleaved without a seed, so each process, and each "
                "resumed run, would read other rows; pass a seed below 2**64, such as "
                "shuffle(seed=0, buffer_size=10_000) or interleave_datasets(..., seed=0)."
            )


class BlockShuffled(BufferShuffledExamplesIterable):  # type: ignore[misc]  # datasets has no types
    """
    Shuffles block by block. The first block has `buffer_size` rows, and each later one between a half of that and the
    whole, drawn anew in each pass: what meets in a block changes. So a buffer that holds all rows shuffles them all.

    Where the source gives Arrow tables, a block ends with a table, and is given as one table.
    """

    @classmethod
    def of(cls, node: BufferShuffledExamplesIterable) -> BlockShuffled:
        """The same as `node`, in blocks."""
        return cls(node.ex_iterable, node.buffer_size, node.generator)

    _state_dict: dict[str, Any] | None

    def _init_state_dict(self) -> dict[str, Any]:
        self.ex_iterable._init_state_dict()
        # The state of the source is that at the beginning of the block: a copy, which nothing changes.
        self._state_dict = {"source": None, "block": 0, "given": 0}
        return self._state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        return _BaseExamplesIterable.load_state_dict(self, state_dict)  # without the warning that rows are lost

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        block, given = self._start()
        source = iter(self.ex_iterable)
        while True:
            before = self._at_source()
            size, random = self._of_block(block)
            rows = list(islice(source, size))
            if not rows:
                return
            order = random.permutation(len(rows))
            for number in range(given, len(rows)):
                self._keep(before, block, number + 1)
                yield rows[order[number]]
            block, given = block + 1, 0

    def _iter_arrow(self) -> Iterator[tuple[Any, pa.Table]]:
        block, given = self._start()
        source = self.ex_iterable.iter_arrow()
        while True:
            size, random = self._of_block(block)
            tables: list[pa.Table] = []
            key = None
            while sum(map(len, tables)) < size and (item := next(source, None)) is not None:
                key = item[0]
                tables.append(item[1])
            if not tables:
                return
            block += 1
            self._keep(self._at_source(), block, 0)
            table = pa.concat_tables(tables)
            yield key, table.take(random.permutation(len(table)))

    def _start(self) -> tuple[int, int]:
        state = self._state_dict
        if state is None:
            return 0, 0
        if state["source"] is not None:
            self.ex_iterable.load_state_dict(state["source"])
        return state["block"], state["given"]

    def _at_source(self) -> Any:
        return None if self._state_dict is None else self.ex_iterable.state_dict()

    def _keep(self, source: Any, block: int, given: int) -> None:
        if self._state_dict is not None:
            self._state_dict.update(source=source, block=block, given=given)

    def _of_block(self, block: int) -> tuple[int, np.random.Generator]:
        """The number of rows of a block, and the generator that shuffles it."""
        seed = deepcopy(self.generator).integers(0, 1 << 63)
        random = np.random.default_rng([seed, block])
        size = max(1, self.buffer_size)
        return (size if block == 0 else int(random.integers((size + 1) // 2, size + 1))), random

    def shift_rngs(self, value: int) -> BlockShuffled:
        return self.of(super().shift_rngs(value))

    def shuffle_data_sources(self, generator: np.random.Generator) -> BlockShuffled:
        return self.of(super().shuffle_data_sources(generator))

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> BlockShuffled:
        return self.of(super().shard_data_sources(num_shards, index, contiguous=contiguous))

    def reshard_data_sources(self) -> BlockShuffled:
        return self.of(super().reshard_data_sources())


class _Live:
    """Where a node is; a copy is its state."""

    def __init__(self, node: Any) -> None:
        self.node = node

    def __deepcopy__(self, memo: Any) -> Any:
        return self.node.state_dict()


class Continued(_BaseExamplesIterable):  # type: ignore[misc]
    """
    The last node of a stream: gives its rows, and loads its state when the first of them is read.

    Raises:
        ValueError: While iterating, for the state of another stream.
    """

    def __init__(self, ex_iterable: Any) -> None:
        super().__init__()
        self.ex_iterable = ex_iterable

    def _init_state_dict(self) -> dict[str, Any]:
        self.ex_iterable._init_state_dict()
        self._state_dict = {"source": _Live(self.ex_iterable), "form": _form(self.ex_iterable)}
        return self._state_dict

    def _start(self) -> None:
        state = self._state_dict
        if state is None or isinstance(state["source"], _Live):
            return
        saved, state["source"] = state["source"], _Live(self.ex_iterable)
        if state["form"] != _form(self.ex_iterable):
            raise ValueError(OTHER_STREAM)
        self.ex_iterable.load_state_dict(saved)

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        self._start()
        yield from self.ex_iterable

    def _iter_arrow(self) -> Iterator[tuple[Any, pa.Table]]:
        self._start()
        yield from self.ex_iterable.iter_arrow()

    @property
    def iter_arrow(self) -> Any:
        return self._iter_arrow if self.ex_iterable.iter_arrow else None

    @property
    def is_typed(self) -> bool:
        return bool(self.ex_iterable.is_typed)

    @property
    def features(self) -> Any:
        return self.ex_iterable.features

    @property
    def num_shards(self) -> int:
        return int(self.ex_iterable.num_shards)

    def shuffle_data_sources(self, generator: np.random.Generator) -> Continued:
        return Continued(self.ex_iterable.shuffle_data_sources(generator))

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> Continued:
        return Continued(self.ex_iterable.shard_data_sources(num_shards, index, contiguous=contiguous))

    def reshard_data_sources(self) -> Continued:
        return Continued(self.ex_iterable.reshard_data_sources())


def _form(node: Any) -> str:
    """How a stream is built: a digest of the kinds of its nodes."""
    parts = [*getattr(node, "ex_iterables", ()), *([node.ex_iterable] if hasattr(node, "ex_iterable") else ())]
    return xxhash.xxh64(" ".join([type(node).__name__, *map(_form, parts)]).encode()).hexdigest()


__all__ = ["OTHER_STREAM", "BlockShuffled", "Continued", "check_seeds", "continued"]
