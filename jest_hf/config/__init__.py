# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run: [`JESTConfig`], its options, their checks, and the published methods as presets."""

from __future__ import annotations

from jest_hf.config.config import JESTConfig, SelectionSettings
from jest_hf.config.presets import DEFAULTS, PRESETS


__all__ = ["DEFAULTS", "PRESETS", "JESTConfig", "SelectionSettings"]
