# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
