# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What makes the whole suite faster: cheap garbage collection, and an order that keeps all workers busy to the end."""

from __future__ import annotations

import gc

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: the file takes long, so the workers of pytest-xdist start with it")
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # or pytest-xdist begins with the files of the most tests


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist loadfile`, a long file that is started last would leave the other workers idle at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("long") is None)  # a stable sort


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage() -> None:
    """
    Leave what has been imported so far, half a million objects and more, out of garbage collections.

    Each training ends with `gc.collect()`, which takes 0.2 s with these objects: half of a short training.
    """
    gc.collect()
    gc.freeze()
