# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The frozen model that says which examples can be learned."""

from jest_hf.reference.cache import embed_rows
from jest_hf.reference.load import load_reference


__all__ = ["embed_rows", "load_reference"]
