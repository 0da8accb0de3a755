# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The reference model: load it, place it on the devices, score with it, and cache its embeddings or losses."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from jest_hf.reference.cache import write_cache
    from jest_hf.reference.fingerprint import describe_data, describe_reading, describe_reference, identify_reference
    from jest_hf.reference.hub import open_cache, push_reference_cache
    from jest_hf.reference.load import load_learner, load_reference, locate_adapter, locate_reference
    from jest_hf.reference.place import place_reference
    from jest_hf.reference.source import CachedReference, FetchingCollator, Reference, ReferenceSource
    from jest_hf.reference.store import ReferenceCache

# The names load on first use, so that `jest-hf <command> --help` imports no torch.
_HOMES = {
    **dict.fromkeys(("write_cache",), "jest_hf.reference.cache"),
    **dict.fromkeys(
        ("describe_data", "describe_reading", "describe_reference", "identify_reference"),
        "jest_hf.reference.fingerprint",
    ),
    **dict.fromkeys(("open_cache", "push_reference_cache"), "jest_hf.reference.hub"),
    **dict.fromkeys(
        ("load_learner", "load_reference", "locate_adapter", "locate_reference"), "jest_hf.reference.load"
    ),
    **dict.fromkeys(("place_reference",), "jest_hf.reference.place"),
    **dict.fromkeys(
        ("CachedReference", "FetchingCollator", "Reference", "ReferenceSource"), "jest_hf.reference.source"
    ),
    **dict.fromkeys(("ReferenceCache",), "jest_hf.reference.store"),
}

__all__ = [
    "CachedReference",
    "FetchingCollator",
    "Reference",
    "ReferenceCache",
    "ReferenceSource",
    "describe_data",
    "describe_reading",
    "describe_reference",
    "identify_reference",
    "load_learner",
    "load_reference",
    "locate_adapter",
    "locate_reference",
    "open_cache",
    "place_reference",
    "push_reference_cache",
    "write_cache",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
