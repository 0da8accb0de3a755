# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of a training run that `JESTTrainer` puts together. Private: import from the rooms below."""
