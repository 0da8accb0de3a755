# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the data path counts the bytes that it says it counts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import data_path
from jest_hf.models import View


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_bytes_and_images_of_early_and_late(image_format):
    files = [data_path.photograph(256, image_format, np.random.default_rng(0))]
    found = data_path.measure(View.parse("image:112"), files, 0.75, sub_batch_size=2, fraction=0.5, rounds=1)
    full, small = 3 * 224 * 224, 3 * 112 * 112
    assert found["super_batch"] == 8
    assert found["early_bytes"] == 8 * full
    assert found["late_bytes"] == 8 * small + full
    assert found["serves"] == (image_format == "JPEG")
    assert (found["levels_apart"] == 0) == (image_format == "PNG")
    assert found["early_images_per_s"] > 0 and found["late_images_per_s"] > 0
