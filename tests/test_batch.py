# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a model computes of a super-batch: its columns, its checks, and scores of examples without pairs."""

from __future__ import annotations

import pytest
import torch

from jest_hf.selection import (
    CRITERIA,
    ContrastiveEmbeddings,
    PairwiseScores,
    PointwiseLosses,
    gumbel_noise,
    select_independently,
    select_jointly,
)


LEARNER = PointwiseLosses(torch.tensor([0.5, 2.0, 1.0, 4.0]))
REFERENCE = PointwiseLosses(torch.tensor([0.25, 0.5, 3.0, 4.0]))
PAIRS = ContrastiveEmbeddings(torch.eye(4), 2 * torch.eye(4), 3.0, -1.0)


@pytest.mark.parametrize("scored", [LEARNER, PAIRS], ids=["losses", "pairs"])
def test_columns_are_what_is_known_of_each_example(scored):
    indices = torch.tensor([3, 1])
    columns = scored.columns()
    assert all(len(column) == len(scored) == 4 for column in columns.values())
    taken = scored.take(indices)
    rebuilt = scored.with_columns({name: column[indices] for name, column in columns.items()})
    assert type(rebuilt) is type(scored) and len(rebuilt) == 2
    for name, column in rebuilt.columns().items():
        assert torch.equal(column, columns[name][[3, 1]]) and torch.equal(column, taken.columns()[name])
    assert {name: value for name, value in vars(rebuilt).items() if name not in columns} == {
        name: value for name, value in vars(scored).items() if name not in columns
    }  # the scale and the bias
    assert scored.to("meta").device == torch.device("meta")


@pytest.mark.parametrize("losses", [torch.zeros(3, 2), torch.zeros(3).double(), torch.zeros(3).long()])
def test_losses_must_be_a_float32_vector(losses):
    with pytest.raises(ValueError, match=r"losses must be float32 of shape \[B\], got torch\.\w+ \[3"):
        PointwiseLosses(losses)


def test_scores_are_signed_losses_and_nothing_depends_on_what_is_drawn():
    expected = {
        "learnability": [0.25, 1.5, -2.0, 0.0],
        "easy_reference": [-0.25, -0.5, -3.0, -4.0],
        "hard_learner": [0.5, 2.0, 1.0, 4.0],
    }
    for criterion in CRITERIA:
        scores = PairwiseScores.from_embeddings(LEARNER, REFERENCE, criterion)
        assert scores.diagonal().tolist() == expected[criterion]
        assert len(scores) == 4 and scores.divisible
        running = scores.start()
        running.add(scores.take(torch.tensor([2, 0])))
        assert running.total().tolist() == [0.0] * 4


def test_a_joint_draw_of_single_examples_looks_at_own_scores_alone():
    scores = torch.linspace(-2, 2, 50)
    noise = gumbel_noise(0, 0, 3, 50)
    drawn: list[int] = []
    for row, size in zip(noise, [7, 7, 6], strict=True):
        keys = (scores.double() + row).tolist()
        drawn += sorted(set(range(50)) - set(drawn), key=lambda i: -keys[i])[:size]  # noqa: B023
    assert select_jointly(PairwiseScores.from_pointwise(scores), 20, 3, noise=noise).tolist() == drawn
    once = select_jointly(PairwiseScores.from_pointwise(scores), 20, 1, noise=noise[:1])
    assert torch.equal(once, select_independently(scores, 20, noise[0]))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (PAIRS, "both embed pairs or both have losses, got PointwiseLosses and ContrastiveEmbeddings"),
        (PointwiseLosses(torch.zeros(3)), "the same examples, got 4 and 3"),
        (REFERENCE.to("meta"), "one device, got cpu and meta"),
        (None, "'learnability' needs the reference's"),
    ],
)
def test_models_that_do_not_go_together(reference, message):
    with pytest.raises(ValueError, match=message):
        PairwiseScores.from_embeddings(LEARNER, reference)
