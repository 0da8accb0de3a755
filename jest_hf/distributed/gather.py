# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Gather Python objects, and more rows than fit on a device. These collectives are rare, not part of every step.

`device` is the device on which the backend sends tensors (NCCL: the rank's GPU).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jest_hf.distributed.ranks import Ranks


ROWS_AT_A_TIME = 65536  # over all ranks: 200 MB of embeddings of width 768


def gather_objects(ranks: Ranks, value: Any, device: torch.device | str = "cpu") -> list[Any]:
    """Return a picklable object of every rank, in the order of ranks. A collective."""
    if ranks.size == 1:
        return [value]
    own = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(device)
    counts = ranks.gather_counts(len(own), device)
    parts = torch.split(ranks.gather_rows(own, counts).cpu(), counts)
    return [pickle.loads(part.numpy().tobytes()) for part in parts]


def ask_first_rank(ranks: Ranks, question: Callable[[], Any], device: torch.device | str = "cpu") -> Any:
    """Call `question` on the first rank and return its result on every rank. A collective.

    For results that may differ between two calls, such as those of the Hub.

    Args:
        ranks ([`Ranks`]): The ranks that need the result. They wait for it as long as their group allows
            (`ddp_timeout`).
        question (`Callable`): Called on the first rank alone; its result must be picklable.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Device on which the backend sends tensors.

    Raises:
        Exception: on the first rank, whatever `question` raises.
        RuntimeError: on the other ranks in that case, with the same message, so that none waits for ever.
    """
    if ranks.size == 1:
        return question()
    answer, failure = None, None
    if ranks.rank == 0:
        try:
            answer = question()
        except Exception as error:
            failure = error
    answer, message = gather_objects(ranks, (answer, None if failure is None else str(failure)), device)[0]
    if failure is not None:
        raise failure
    if message is not None:
        raise RuntimeError(f"rank 0 failed: {message}")
    return answer


def gather_to_cpu(ranks: Ranks, rows: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Gather the rows of all ranks, in the order of ranks, on the CPU, a part at a time. A collective.

    Args:
        ranks ([`Ranks`]): The ranks that gather.
        rows (`torch.Tensor`): This rank's `[n, ...]`, on the CPU; n may differ between ranks and may be 0.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Device on which the backend sends tensors.

    Returns:
        `torch.Tensor`: `[sum of n, ...]`, on the CPU.
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
