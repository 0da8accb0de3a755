# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What other selectors would have picked, against sets, whole matrices and counting."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from jest_hf import JESTConfig
from jest_hf.distributed import Ranks, Shares
from jest_hf.report import batch_loss, compare_selectors, source_shares
from jest_hf.selection import CRITERIA, DrawKey, PointwiseLosses, Pool, Scores, Selector, draw_sub_batch
from jest_hf.training.step import compared_selectors
from tests.selection import literal
from tests.selection.models import learner_and_reference


N, SIZE = 90, 24
NAMES = ["uniform"] + [f"{selection}/{name}" for selection in ("joint", "independent", "top_k") for name in CRITERIA]


def pairs(n=N):
    return dict(zip(("learner", "reference"), learner_and_reference("clusters", n), strict=True))


def losses(n=N):
    learner, reference = torch.rand(2, n, generator=torch.Generator().manual_seed(0))
    return {"learner": PointwiseLosses(learner), "reference": PointwiseLosses(reference)}


def draw_of(embeddings, eligible, start=0, total=N, ranks=None, **changed):
    options = {"size": SIZE, "n_chunks": 4, "loss": "sigmoid", "gain": 1.0, "seed": 0, "step": 3, **changed}
    ids = torch.arange(start, start + len(eligible))
    return partial(
        draw_sub_batch, embeddings, eligible, ids, start=start, total=total, ranks=ranks or Ranks(), **options
    )


def compare(names, embeddings, eligible, indices, loss, *sources, **settings):
    settings = {"n_chunks": 4, "loss": loss, **settings}
    pool = Pool(
        {"valid": eligible, "example_id": torch.arange(N)}, torch.arange(N), Shares.of(Ranks(), eligible), size=SIZE
    )
    selectors = [Selector.parse(name, **settings) for name in names]
    return compare_selectors(selectors, pool, Scores.of(embeddings), DrawKey(0, 3), indices, loss, *sources)


def literal_loss(scored, loss, indices):
    """Of the examples taken as one batch."""
    if isinstance(scored, PointwiseLosses):
        return sum(scored.losses[i].item() for i in indices) / len(indices)
    logits = literal.logits(scored.take(torch.tensor(indices)))
    if loss == "sigmoid":
        return -F.logsigmoid((2 * torch.eye(len(logits)).double() - 1) * logits).sum().item() / len(logits)
    own = logits.diagonal()
    return ((logits.logsumexp(0) + logits.logsumexp(1)) / 2 - own).mean().item()


@pytest.mark.parametrize(
    ("embeddings", "loss"), [(pairs(), "sigmoid"), (pairs(), "softmax"), (losses(), "sigmoid")], ids=str
)
def test_figures_are_those_of_what_each_selector_draws(embeddings, loss):
    eligible = torch.arange(N) % 7 != 0
    draw = draw_of(embeddings, eligible, loss=loss)
    sources, names = torch.arange(N) % 3 - 1, ["clean", "noise"]
    indices = torch.cat([chunk.indices for chunk in draw(selection="joint", criterion="learnability")])
    metrics = compare(NAMES, embeddings, eligible, indices, loss, sources, names)
    expected = {}
    for name in NAMES:
        selection, _, criterion = name.partition("/")
        drawn = [int(i) for chunk in draw(selection=selection, criterion=criterion) for i in chunk.indices]
        expected |= {
            f"compare/{name}/overlap": len(set(drawn) & set(indices.tolist())) / SIZE,
            f"compare/{name}/learnability": literal_loss(embeddings["learner"], loss, drawn)
            - literal_loss(embeddings["reference"], loss, drawn),
            f"compare/{name}/share/clean": sum(sources[i].item() == 0 for i in drawn) / SIZE,
            f"compare/{name}/share/noise": sum(sources[i].item() == 1 for i in drawn) / SIZE,
        }
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert metrics["compare/joint/learnability/overlap"] == 1
    assert metrics["compare/uniform/overlap"] < 0.7


def test_joint_selectors_go_by_losses_also_beside_a_selection_by_similarity(tmp_path):
    names = ["joint/learnability", "independent/learnability"]
    args = JESTConfig(
        output_dir=tmp_path, pair_score="similarity", selection="top_k", compare_selectors=names, use_cpu=True
    )
    joint, independent = compared_selectors(args, "softmax")
    assert (str(joint), joint.loss) == (names[0], "softmax")
    assert (str(independent), independent.loss) == (names[1], "similarity")


def test_one_model_has_no_learnability_and_no_sources_no_shares():
    embeddings = {"learner": pairs()["learner"]}
    eligible = torch.ones(N, dtype=torch.bool)
    metrics = compare(["top_k/hard_learner", "uniform"], embeddings, eligible, torch.arange(SIZE), "sigmoid")
    assert metrics.keys() == {"compare/top_k/hard_learner/overlap", "compare/uniform/overlap"}


def test_a_batch_of_single_examples_has_their_mean_loss():
    assert batch_loss(PointwiseLosses(torch.tensor([1.0, 2.0, 6.0])), "sigmoid") == 3.0


def test_shares_of_sources_without_a_name_are_nobodys():
    shares = Shares.of(Ranks(), torch.ones(5, dtype=torch.bool))
    sources = torch.tensor([-1, 0, 0, 1, 7])
    found = source_shares(shares, sources, ["a", "b", "c"], torch.tensor([4, 2, 3, 0]))
    assert found == {"a": 0.25, "b": 0.25, "c": 0.0}


@pytest.mark.parametrize("name", NAMES)
def test_a_selector_is_read_as_it_is_written(name):
    selector = Selector.parse(name)
    assert str(selector) == name
    assert selector.criterion == (name.split("/")[1] if "/" in name else None)


NOT_SELECTORS = ["", "joint", "joint/", "/learnability", "uniform/", "uniform/learnability", "best/learnability"]


@pytest.mark.parametrize("name", [*NOT_SELECTORS, "joint/hardest", "joint/learnability/"])
def test_what_is_no_selector_is_refused(name):
    with pytest.raises(ValueError, match=f"a selector must be 'uniform', or joint or .* got {name!r}"):
        Selector.parse(name)
