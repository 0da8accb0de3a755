# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Independent and uniform selection."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from jest_hf.selection import gumbel_noise, select_independently, select_uniformly


def test_without_noise_it_is_top_k():
    scores = torch.tensor([0.5, 2.0, -1.0, 2.0, 3.0])
    assert select_independently(scores, 4).tolist() == [4, 1, 3, 0]


def test_first_draw_is_proportional_to_the_exponential_of_the_scores():
    scores, trials, gain = torch.tensor([0.0, 0.5, 1.0, -1.0]), 4000, 2.0
    noise = gumbel_noise(0, 0, trials, 4)
    first = torch.cat([select_independently(scores, 2, noise[trial], gain)[:1] for trial in range(trials)])
    expected = trials * (gain * scores.double()).softmax(0)
    assert stats.chisquare(first.bincount(minlength=4), expected).pvalue > 0.01


def test_uniform_selection_draws_by_noise_alone():
    noise = gumbel_noise(0, 0, 1, 100)[0]
    assert torch.equal(select_uniformly(noise, 10), noise.sort(descending=True).indices[:10])
    eligible = torch.arange(100) % 2 == 0
    assert set(select_uniformly(noise, 50, eligible).tolist()) == set(range(0, 100, 2))


def test_ineligible_examples_are_never_drawn():
    scores = torch.tensor([1.0, torch.nan, 3.0, torch.inf])
    eligible = torch.tensor([True, False, True, False])
    assert select_independently(scores, 2, eligible=eligible).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pointwise_scores": torch.zeros(3, 3)}, r"must be \[B\], got \[3, 3\]"),
        ({"pointwise_scores": torch.tensor([0.0, torch.nan, 1.0])}, r"1 of 3 candidates .* \(positions 1\)"),
        ({"size": 4}, "number of eligible examples, 3, got 4"),
        ({"size": 0}, "size must be at least 1"),
        ({"noise": torch.zeros(1, 3)}, r"noise must have shape \[3\], got \[1, 3\]"),
        ({"gain": -2.0}, "gain must be a positive finite number"),
        ({"eligible": torch.ones(3)}, "eligible must be a bool tensor"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_independently(**{"pointwise_scores": torch.zeros(3), "size": 2, **arguments})
