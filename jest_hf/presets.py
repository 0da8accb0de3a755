# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The old place of the presets; see `jest_hf.config.presets`."""

from __future__ import annotations

from jest_hf.moved import moved


__getattr__ = moved(__name__, dict.fromkeys(("DEFAULTS", "PRESETS"), "jest_hf.config.presets"))
