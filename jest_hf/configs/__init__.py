# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Presets for `accelerate launch --config_file`, one YAML file for each kind of run."""
