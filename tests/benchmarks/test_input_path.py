# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the input path measures paths that give a model's input, and reports how far they are off PIL."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import input_path
from benchmarks.data_path import photograph


def test_every_path_gives_the_model_the_same_image():
    data = photograph(256, "JPEG", np.random.default_rng(0))
    image = input_path.open_rgb(data)
    expected = input_path.resize_and_normalise(image)
    for decode, make in (input_path.own_paths() | input_path.other_paths()[0]).values():
        made = torch.as_tensor(make(decode(data)))
        if made.dtype == torch.uint8:
            made = (made / 255 - 0.5) / 0.5
        assert made.squeeze(0).shape == (3, 224, 224)
        difference = (made.squeeze(0) - expected).abs()
        assert difference.mean() < 0.02 or make.__class__.__name__ == "Compose"  # open_clip has another mean


def test_the_table_has_every_path_and_size(capsys):
    input_path.main(["--quick"])
    printed = capsys.readouterr().out
    for name in (*input_path.own_paths(), *input_path.other_paths()[0], "image cache", "256 px", "512 px"):
        assert name in printed
    assert "Written" not in printed


def test_levels_off_are_those_of_the_default_and_of_scaled_decoding():
    rows, _ = input_path.measure(512, n_files=2, rounds=1)
    off = {row["path"]: row["most_levels_off_pil"] for row in rows}
    assert off["jest_hf, image cache"] == off["jest_hf"] <= 2 < off["jest_hf, scaled"]
    assert all(row["whole_ms"] >= row["after_decoding_ms"] > 0 for row in rows)
