# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The marks of the plots, read from their texts, and errors."""

from __future__ import annotations

import matplotlib
import pytest
from PIL import Image

from jest_hf.report import QualityPoint, first_reaching, plot_quality


IID = [(0, 0, 0.0, 0.0), (100, 100, 1e12, 0.1), (200, 200, 2e12, 0.2), (300, 300, 3e12, 0.3)]
JEST = [(0, 0, 0.0, 0.0), (100, 500, 5e12, 0.35), (200, 1000, 1e13, 0.5)]


def texts_of(runs, folder):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_quality(runs, folder / "quality.svg", "text-to-image R@5")
    return (folder / "quality.svg").read_text()


def test_first_reaching_interpolates_nothing():
    assert first_reaching(IID, 0.15) == QualityPoint(200, 200, 2e12, 0.2)
    assert first_reaching(IID, 0.2).trained == 200
    assert first_reaching(IID, 0.31) is None


def test_ratios_are_marked_where_the_better_run_reaches_the_other(tmp_path):
    drawing = texts_of({"IID": IID, "JEST": JEST}, tmp_path)
    assert "3.0x fewer" in drawing  # 100 examples against 300
    assert "1.7x more" in drawing  # 5e12 FLOPs against 3e12
    for label in ("IID", "JEST", "text-to-image R@5", "examples trained on", "FLOPs spent"):
        assert label in drawing


def test_seconds_are_a_third_panel_where_all_points_have_them(tmp_path):
    timed = {
        "IID": [(*point, 100.0 * number) for number, point in enumerate(IID)],
        "JEST": [(*point, 200.0 * number) for number, point in enumerate(JEST)],
    }
    drawing = texts_of(timed, tmp_path)
    assert "seconds spent" in drawing and "1.5x fewer" in drawing  # 200 seconds against 300
    assert "seconds spent" not in texts_of({**timed, "IID": IID}, tmp_path)


def test_the_baseline_is_the_one_that_is_named(tmp_path):
    runs = {"IID": IID, "JEST": JEST, "weak": [(100, 500, 1e12, 0.05), (200, 1000, 2e12, 0.1)]}
    assert "3.0x fewer" not in texts_of(runs, tmp_path)  # the target is the end of the run "weak"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_quality(runs, tmp_path / "quality.svg", "R@5", baseline="IID")
    assert "3.0x fewer" in (tmp_path / "quality.svg").read_text()


def test_one_run_has_nothing_to_be_compared_with(tmp_path):
    drawing = texts_of({"JEST": JEST}, tmp_path)
    assert "fewer" not in drawing and "more" not in drawing


def test_png_is_wide_enough_for_a_page(tmp_path):
    plot_quality({"IID": IID, "JEST": JEST}, tmp_path / "quality.png", "R@5")
    with Image.open(tmp_path / "quality.png") as image:
        assert image.width >= 1200 and len(image.convert("RGB").getcolors(1 << 24)) > 50


@pytest.mark.parametrize("runs", [{}, {"IID": IID, "JEST": []}])
def test_runs_without_evaluations_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="evaluate each at least once"):
        plot_quality(runs, tmp_path / "quality.png", "R@5")
