# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The reference model: load it, place it on the devices, score with it, and cache its embeddings or losses."""

from jest_hf.reference.cache import write_cache
from jest_hf.reference.fingerprint import describe_data, describe_reading, describe_reference, identify_reference
from jest_hf.reference.hub import open_cache, push_reference_cache
from jest_hf.reference.load import load_learner, load_reference, locate_adapter, locate_reference
from jest_hf.reference.place import place_reference
from jest_hf.reference.source import CachedReference, FetchingCollator, Reference, ReferenceSource
from jest_hf.reference.store import ReferenceCache


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
