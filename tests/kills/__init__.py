# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed at random moments go on as if nothing had happened: `python -m tests.kills --kills 100`."""
