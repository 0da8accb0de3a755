# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Where in a stream a run is, after a step: what a checkpoint has to hold of it, a file of each rank.

Loader workers read ahead, so the position is not where they are: each super-batch brings the place at which its rows
ended, and the position after a step is made of the places of the super-batches up to this step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jest_hf.distributed import Ranks, gather_objects
from jest_hf.files import replacing


class Place(NamedTuple):
    """Where a loader worker is in its part of a stream.

    Attributes:
        n_rows (`int`): Rows that it has read in this pass.
        state (`dict`, *optional*): The state of the `datasets.IterableDataset`, of integers, strings and lists; `None`
            for another stream, which has no state.
    """

    n_rows: int
    state: dict[str, Any] | None


@dataclass(frozen=True)
class Position:
    """Where one rank is in a stream, after a step.

    Args:
        step (`int`): The step, from 1; 0 before the first.
        epoch (`int`): The pass over the stream, from 0.
        before (`int`): Steps in the passes before.
        n_ranks (`int`): Ranks that share the stream.
        n_workers (`int`): Loader workers of each rank. One worker reads in another order than none: `datasets` shifts
            the seeds of workers.
        next_worker (`int`): The loader worker that gives the next super-batch.
        places (sequence of [`Place`], *optional*): The place of each loader worker (or of this process, without
            workers); `None` for a worker that has given no super-batch in this pass.
    """

    step: int
    epoch: int
    before: int
    n_ranks: int
    n_workers: int
    next_worker: int
    places: Sequence[Place | None]


def save_position(position: Position, folder: str | Path, rank: int) -> None:
    """Write the position of a rank into a checkpoint.

    Args:
        position ([`Position`]): The position after the step of the checkpoint.
        folder (`str` or `Path`): The checkpoint.
        rank (`int`): The rank.
    """
    with replacing(_file(folder, rank)) as file:
        # numpy numbers and arrays, which generators of numpy have in their state, become numbers and lists.
        file.write(json.dumps(asdict(position), default=lambda value: value.tolist()).encode())


def load_position(folder: str | Path, ranks: Ranks, n_workers: int, device: Any = "cpu") -> Position | None:
    """Read this rank's position from a checkpoint; `None` if the checkpoint has none. A collective.

    Args:
        folder (`str` or `Path`): The checkpoint.
        ranks ([`~jest_hf.distributed.Ranks`]): The processes that share the stream now.
        n_workers (`int`): Loader workers of each of them.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Device of the tensors that the ranks exchange.

    Raises:
        ValueError: On all ranks, if the run had another number of ranks or loader workers, or if files are missing.
    """
    path, position = _file(folder, ranks.rank), None
    if path.is_file():
        saved = json.loads(path.read_bytes())
        places = [None if place is None else Place(*place) for place in saved.pop("places")]
        position = Position(**saved, places=places)
    own = None if position is None else (position.n_ranks, position.n_workers)
    found = gather_objects(ranks, own, device)
    known = next((one for one in found if one is not None), None)
    if known is None:
        return None
    saved_ranks, saved_workers = known
    if saved_ranks != ranks.size:
        raise ValueError(
            f"resume_from_checkpoint: the run that saved {folder} read its stream with {saved_ranks} processes, and "
            f"this one has {ranks.size}, which would read other rows; start {saved_ranks} processes."
        )
    if saved_workers != n_workers:
        raise ValueError(
            f"dataloader_num_workers={n_workers}: the run that saved {folder} read its stream with {saved_workers} "
            f"loader workers on each process, and another number would read other rows; set dataloader_num_workers="
            f"{saved_workers}."
        )
    if None in found:
        raise ValueError(
            f"resume_from_checkpoint: {_file(folder, found.index(None))} is missing, which says where process "
            f"{found.index(None)} was in its stream; every process needs the file that it has saved."
        )
    return position


def _file(folder: str | Path, rank: int) -> Path:
    return Path(folder) / f"stream_position_{rank}.json"


__all__ = ["Place", "Position", "load_position", "save_position"]
