# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Runs on another device than the CPU: a simulated one on any machine, a GPU where there is one."""
