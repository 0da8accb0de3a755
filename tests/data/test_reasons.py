# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Data of which most cannot be used are said so, with the reasons."""

from __future__ import annotations

import pytest

from jest_hf import JESTDataCollator
from jest_hf.data.labelled import ImageLabelCollator
from jest_hf.data.reasons import mostly_broken, reasons_of
from jest_hf.data.rows import Rows
from tests.helpers import random_rows, tiny_siglip_processor


def some_broken(n: int, n_broken: int) -> Rows:
    rows = random_rows(n)
    for row in rows[n - n_broken :]:
        row["image"] = None
    return Rows(rows)


def test_reasons_of_pairs_and_of_labelled_images():
    rows = [{"image": b"no image", "text": "a", "label": 0, "example_id": 3}]
    processor = tiny_siglip_processor()
    for collator in (JESTDataCollator(processor), ImageLabelCollator(processor.image_processor, {"a": 0, "b": 1})):
        (reason,) = reasons_of(collator, rows)
        assert reason.startswith("example 3: the image is in no format")
    assert reasons_of(JESTDataCollator(processor), random_rows(2)) == []


@pytest.mark.parametrize(("n_broken", "is_said"), [(0, False), (20, False), (21, True), (40, True)])
def test_more_than_half(n_broken, is_said):
    found = mostly_broken(n_broken, 40, JESTDataCollator(tiny_siglip_processor()), some_broken(40, n_broken))
    assert (found is not None) is is_said
    if is_said:
        assert found.startswith(f"{n_broken} of 40 cannot be used (example ") and found.count("example") == 3
