# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images: from encoded bytes to uint8 pixels, normalisation on the device, and cheaper views (Flexi-JEST)."""
