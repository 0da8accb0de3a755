# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How several processes share one super-batch: the collectives, and the exchange of selected examples."""

from jest_hf.distributed.exchange import Exchanged, exchange, plan_exchange, quotas
from jest_hf.distributed.gather import gather_objects, gather_to_cpu
from jest_hf.distributed.ranks import Ranks
from jest_hf.distributed.shares import Shares


__all__ = [
    "Exchanged",
    "Ranks",
    "Shares",
    "exchange",
    "gather_objects",
    "gather_to_cpu",
    "plan_exchange",
    "quotas",
]
