# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How several processes share one super-batch: the collectives, and the exchange of selected examples."""

from jest_hf.distributed.ranks import Ranks


__all__ = ["Ranks"]
