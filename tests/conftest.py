# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
The suite runs on the CPU, also on a machine with a GPU: its results are compared bit by bit. `benchmarks/gpu.sh` and
`python -m tests.device` check what a GPU must show.

And what makes the whole suite faster: cheap garbage collection, and an order that keeps all workers busy to the end.
"""

from __future__ import annotations

import os


os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch, and for the processes that tests start

import gc  # noqa: E402

import pytest  # noqa: E402


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
