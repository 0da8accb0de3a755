# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Old import paths, kept for one minor version: each gives the object at its new place, with a `FutureWarning`."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def moved(old_module: str, new_modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module whose names have moved.

    Args:
        old_module (`str`): The module from which the names can still be imported.
        new_modules (mapping of `str` to `str`): The new module of each name.
    """

    def get(name: str) -> Any:
        if name not in new_modules:
            raise AttributeError(f"module {old_module!r} has no attribute {name!r}")
        warnings.warn(
            f"{old_module}.{name} has moved, and the old path will be removed in the next minor version; import it "
            f"from {new_modules[name]}.",
            FutureWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(new_modules[name]), name)

    return get


__all__ = ["moved"]
