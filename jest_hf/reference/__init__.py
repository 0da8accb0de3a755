# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The frozen model that says which examples can be learned."""

from jest_hf.reference.cache import embed_rows
from jest_hf.reference.load import load_reference
from jest_hf.reference.place import place_reference
from jest_hf.reference.reference import Reference


__all__ = ["Reference", "embed_rows", "load_reference", "place_reference"]
