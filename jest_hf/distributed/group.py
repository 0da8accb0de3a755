# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The life of the default process group: how long its processes wait for each other, and its end."""

from __future__ import annotations

import atexit
import sys
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d


def limit_waits(seconds: float) -> None:
    """Set how long a collective of the default group waits for a process that hangs; without a group do nothing.

    `TrainingArguments` passes `ddp_timeout` to every group but one on CPUs (`use_cpu=True`), which keeps torch's half
    an hour.

    Args:
        seconds (`float`): Seconds after which the processes that wait raise an error.
    """
    if dist.is_available() and dist.is_initialized():
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))  # torch has no public name for it


def end_group_at_exit() -> None:
    """Destroy the default group when the interpreter exits, which torch warns about otherwise. After an error that
    ends the process it is left: others may wait in a collective, and destroying it would wait for them."""
    if dist.is_available() and dist.is_initialized():
        atexit.unregister(_end_group)
        atexit.register(_end_group)


def _end_group() -> None:
    if dist.is_initialized() and not hasattr(sys, "last_value"):
        dist.destroy_process_group()


__all__ = ["end_group_at_exit", "limit_waits"]
