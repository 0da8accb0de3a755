# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that share one super-batch: the collectives, and the exchange of selected examples."""

from jest_hf.distributed.exchange import Exchanged, exchange, plan_exchange, quotas
from jest_hf.distributed.gather import ask_first_rank, gather_objects, gather_to_cpu
from jest_hf.distributed.ranks import Ranks
from jest_hf.distributed.shares import Shares, owners_of


__all__ = [
    "Exchanged",
    "Ranks",
    "Shares",
    "ask_first_rank",
    "exchange",
    "gather_objects",
    "gather_to_cpu",
    "owners_of",
    "plan_exchange",
    "quotas",
]
