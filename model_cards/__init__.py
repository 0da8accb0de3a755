# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Jinja templates of the model cards, installed as `jest_hf.model_cards`."""
