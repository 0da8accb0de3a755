# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What the server of `processes` imports before it forks: everything that a rank would import by itself, each time."""

import gc
import importlib.util
import os

import tests.online  # noqa: F401


if importlib.util.find_spec("deepspeed") is not None:  # accelerate imports it in each training
    others = os.environ.copy()
    os.environ["DS_ACCELERATOR"] = "cpu"  # or it would look for a GPU
    import deepspeed  # noqa: F401

    os.environ.clear()
    os.environ.update(others)
gc.collect()
gc.freeze()  # or each rank would look through all of that for garbage
