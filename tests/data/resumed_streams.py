# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Streams of many kinds, whose rows are counted when they are read, and loaders of them that go on in the middle.

`python -m tests.data.resumed_streams` prints the table of rows read again in docs/distributed.md.
"""

from __future__ import annotations

import io
import multiprocessing
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from jest_hf.data.chosen import load_chosen
from jest_hf.data.position import load_position, save_position
from jest_hf.data.stream import load_stream
from jest_hf.distributed import Ranks


READ = multiprocessing.Value("i", 0)  # rows, in this process and in the loader workers that are forked from it


def count(n: int = 1) -> None:
    with READ.get_lock():
        READ.value += n


def _counted(read: Callable[..., Any]) -> Callable[..., Any]:
    """A reader of `datasets` whose rows (or tables of rows) are counted."""

    @wraps(read)
    def counted(*args: Any, **more: Any) -> Iterator[Any]:
        for key, item in read(*args, **more):
            count(len(item) if isinstance(item, pa.Table) else 1)
            yield key, item

    return counted


Parquet._generate_tables = _counted(Parquet._generate_tables)
WebDataset._generate_examples = _counted(WebDataset._generate_examples)


def generate(shards: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for start, stop in shards:
        for number in range(start, stop):
            count()
            yield {"image": None, "number": number}


class Kinds:
    """
    Streams of about `n` rows in shards of `shard` rows.

    Args:
        folder (`Path`): For the files of Parquet and webdataset.
    """

    def __init__(self, folder: Path, n: int, shard: int, buffer: int) -> None:
        self.folder, self.n, self.shard, self.buffer = folder, n, shard, buffer

    def generator(self, start: int = 0, n: int | None = None) -> datasets.IterableDataset:
        stop = start + (n or self.n)
        shards = [(first, min(first + self.shard, stop)) for first in range(start, stop, self.shard)]
        return datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": shards})

    def shuffled(self) -> datasets.IterableDataset:
        return self.generator().shuffle(seed=3, buffer_size=self.buffer)

    def concatenated(self) -> datasets.IterableDataset:
        """Of parts that are built in different ways: a loader worker has other parts than its rank, by place."""
        mapped = self.generator(0, self.n // 3).map(lambda row: row)
        return datasets.concatenate_datasets([mapped, self.generator(self.n, self.n // 2)])

    def concatenated_and_shuffled(self) -> datasets.IterableDataset:
        return self.concatenated().shuffle(seed=4, buffer_size=self.buffer)

    def interleaved(self) -> datasets.IterableDataset:
        parts = [self.generator(0, self.n // 3), self.generator(self.n, self.n // 2)]
        return datasets.interleave_datasets(parts, probabilities=[0.4, 0.6], seed=5, stopping_strategy="all_exhausted")

    def interleaved_of_shuffled(self) -> datasets.IterableDataset:
        parts = [self.generator(0, self.n // 2), self.generator(self.n, self.n // 2)]
        return datasets.interleave_datasets([part.shuffle(seed=6, buffer_size=self.buffer) for part in parts])

    def mapped_and_filtered(self) -> datasets.IterableDataset:
        rows = self.shuffled().filter(lambda row: row["number"] % 5 > 0)
        return rows.map(lambda rows: {"number": [-one for one in rows["number"]]}, batched=True, batch_size=7)

    def parquet(self) -> datasets.IterableDataset:
        for first in range(0, self.n, self.shard):
            if not (path := self.folder / f"{first:06}.parquet").exists():
                numbers = list(range(first, first + self.shard))
                datasets.Dataset.from_dict({"number": numbers}).to_parquet(path)
        files = sorted(map(str, self.folder.glob("*.parquet")))
        rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        return rows.shuffle(seed=7, buffer_size=self.buffer)

    def webdataset(self) -> datasets.IterableDataset:
        for first in range(0, self.n, self.shard):
            if not (path := self.folder / f"{first:06}.tar").exists():
                with tarfile.open(path, "w") as file:
                    for number in range(first, first + self.shard):
                        data, about = str(number).encode(), tarfile.TarInfo(f"{number:06}.txt")
                        about.size = len(data)
                        file.addfile(about, io.BytesIO(data))
        files = sorted(map(str, self.folder.glob("*.tar")))
        rows = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
        return rows.shuffle(seed=8, buffer_size=self.buffer)


KINDS = (
    "generator",
    "shuffled",
    "concatenated",
    "concatenated_and_shuffled",
    "interleaved",
    "interleaved_of_shuffled",
    "mapped_and_filtered",
    "parquet",
    "webdataset",
)


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    numbers = [int(row["txt"] if "txt" in row else row["number"]) for row in rows]
    ids = {name: torch.tensor([row[name] for row in rows]) for name in ("example_id", "epoch")}
    return {"number": torch.tensor(numbers), **ids}


def choose(ids: torch.Tensor, epoch: int, step: int) -> list[int]:
    """Half of the rows, in an order that depends on the step."""
    n = ids.shape[1]
    return [(step + 3 * place) % n for place in range(n // 2)]


def load(form: str, stream: Any, size: int, ranks: Ranks | None = None, **options: Any) -> Any:
    """The loader of super-batches, or of chosen rows."""
    more = (choose,) if form == "chosen" else ()
    return {"plain": load_stream, "chosen": load_chosen}[form](stream, collate, size, *more, ranks=ranks, **options)


def read(loader: Any, steps: int, kept: tuple[int, ...] = (), skipped: int = 0) -> tuple[list[Any], dict[int, Any]]:
    """The super-batches of `steps` steps after those skipped, and the positions after the steps of `kept`."""
    found, positions = [], {}
    for step, batch in enumerate(islice(iter(loader), skipped + steps), start=1):
        if step in kept:
            positions[step] = loader.dataset.positions[step]
        if step > skipped:
            found.append({name: value.tolist() for name, value in batch.items()})
        else:
            assert not batch
    return found, positions


def check(
    make: Callable[[], Any],
    form: str,
    steps: tuple[int, ...],
    folder: Path,
    size: int,
    ranks: Ranks | None = None,
    more: int = 12,
    **options: Any,
) -> dict[int, int]:
    """
    Read the stream once, and again from the position after each of `steps`: the super-batches are the same. Positions
    go through files. Returns the rows that were read for the first super-batch after each of `steps`.
    """
    ranks = ranks or Ranks()
    whole, positions = read(load(form, make(), size, ranks, **options), max(steps) + more, steps)
    reads = {}
    for step in steps:
        (folder / str(step)).mkdir(exist_ok=True)
        save_position(positions[step], folder / str(step), ranks.rank)
        start = load_position(folder / str(step), ranks, options.get("num_workers", 0))
        assert start is not None and start.step == step
        loader = partial(load, form, make(), size, ranks, n_skipped=step, start=start, **options)
        READ.value = 0
        next(islice(iter(loader().dataset), step, None))
        reads[step] = READ.value
        found, _ = read(loader(), more, skipped=step)
        assert found == whole[step : step + more], (form, step)
    return reads


def main() -> None:
    datasets.disable_progress_bars()
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # seconds after each stream of Parquet files
    print("| stream | k = 5 | k = 50 | k = 500 |\n|---|---|---|---|")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            kinds = Kinds(Path(folder), 20_000, 100, 256)
            reads = check(getattr(kinds, kind), "plain", (5, 50, 500), Path(folder), 32, more=1)
        print(f"| {kind.replace('_', ' ')} | " + " | ".join(map(str, reads.values())) + " |", flush=True)


if __name__ == "__main__":
    from tests.data import resumed_streams  # functions of `__main__` would be pickled, with the counter

    resumed_streams.main()
