# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What is gathered now and then and not at every step: Python objects, and more rows than a device could hold.

The backend decides which device tensors have to be on to travel (NCCL: the rank's GPU), hence `device`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jest_hf.distributed.ranks import Ranks


ROWS_AT_A_TIME = 65536  # of all ranks together: 200 MB of embeddings of width 768


def gather_objects(ranks: Ranks, value: Any, device: torch.device | str = "cpu") -> list[Any]:
    """A picklable object from every rank, in the order of ranks."""
    if ranks.size == 1:
        return [value]
    own = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(device)
    counts = ranks.gather_counts(len(own), device)
    parts = torch.split(ranks.gather_rows(own, counts).cpu(), counts)
    return [pickle.loads(part.numpy().tobytes()) for part in parts]


def ask_first_rank(ranks: Ranks, question: Callable[[], Any], device: torch.device | str = "cpu") -> Any:
    """
    The answer of the first rank, on every rank: for what need not be the same when two ask, such as the Hub's.

    Args:
        ranks ([`Ranks`]): Who wants to know. They wait for the answer as long as their group allows (`ddp_timeout`).
        question (`Callable`): Called on the first rank alone; what it returns is pickled.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Where tensors have to be to travel.

    Raises:
        Exception: what `question` raises, on the first rank.
        RuntimeError: on the others then, with the same words, so that none waits for ever.
    """
    if ranks.size == 1:
        return question()
    answer, failure = None, None
    if ranks.rank == 0:
        try:
            answer = question()
        except Exception as error:
            failure = error
    answer, said = gather_objects(ranks, (answer, None if failure is None else str(failure)), device)[0]
    if failure is not None:
        raise failure
    if said is not None:
        raise RuntimeError(f"rank 0 says: {said}")
    return answer


def gather_to_cpu(ranks: Ranks, rows: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """
    The rows of all ranks, in the order of ranks, in the memory of the host; on the device only a part at a time.

    Args:
        ranks ([`Ranks`]): Who gathers.
        rows (`torch.Tensor`): This rank's `[n, ...]`, on the CPU; n may differ between ranks and may be 0.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Where tensors have to be to travel.
    """
    if ranks.size == 1:
        return rows
    counts = ranks.gather_counts(len(rows), device)
    step = max(1, ROWS_AT_A_TIME // ranks.size)
    parts: list[list[Tensor]] = [[] for _ in counts]
    for start in range(0, max(counts), step):
        sizes = [min(step, max(0, count - start)) for count in counts]
        gathered = ranks.gather_rows(rows[start : start + step].to(device), sizes).cpu()
        for of_rank, part in zip(parts, torch.split(gathered, sizes), strict=True):
            of_rank.append(part)
    return torch.cat([part for of_rank in parts for part in of_rank]) if any(counts) else rows


__all__ = ["ask_first_rank", "gather_objects", "gather_to_cpu"]
