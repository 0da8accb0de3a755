# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Old import paths, kept for one minor version: each gives the object at its new place, with a `FutureWarning`."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(old_module: str, new_modules: Mapping[str, str]) -> Callable[[str], Any]:
    """
    Make the `__getattr__` of a module whose names have moved.

    Args:
        old_module (`str`): Name of the module that users import from.
        new_modules (mapping of `str` to `str`): By name, the module that now has it.
    """

    def get(name: str) -> Any:
        if name not in new_modules:
            raise AttributeError(f"module {old_module!r} has no attribute {name!r}")
        warnings.warn(
            f"{old_module}.{name} has moved, and its old place will go in the next minor version; import it from "
            f"{new_modules[name]}.",
            FutureWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(new_modules[name]), name)

    return get


__all__ = ["moved"]
