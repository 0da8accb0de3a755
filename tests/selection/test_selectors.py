# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every registered selection, end to end: a selector on a pool against the function that draws from scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jest_hf.batch import Scores
from jest_hf.distributed import Ranks, Shares
from jest_hf.selection import (
    CRITERIA,
    SELECTIONS,
    DrawKey,
    Pool,
    Selector,
    chunk_sizes,
    draw_sub_batch,
)
from tests.selection.models import learner_and_reference


KEY = DrawKey(seed=7, step=3)
# By selection: whether examples are scored, whether pairs of them are, and the settings that a model card shows.
CASES = {
    "joint": (True, True, ("n_chunks", "gain")),
    "independent": (True, False, ("gain",)),
    "top_k": (True, False, ()),
    "uniform": (False, False, ()),
}


def test_every_selection_has_a_row():
    assert CASES.keys() == SELECTIONS.keys()


def make_pool(n: int, size: int, barred: set[int], order: torch.Tensor | None = None) -> Pool:
    order = torch.arange(n) if order is None else order
    valid = torch.tensor([i not in barred for i in range(n)])
    rows = {"valid": valid[order], "example_id": 100 + order}
    return Pool(rows, order, Shares.of(Ranks(), rows["valid"]), size)


class Asked:
    """Return the scores of models, and record for which models a selector requested scores."""

    def __init__(self, models: dict[str, object]) -> None:
        self.models, self.calls = models, []

    def __call__(self, names: tuple[str, ...]) -> Scores:
        self.calls.append(names)
        return Scores.of({name: self.models[name] for name in names})


@st.composite
def draws(draw):
    n = draw(st.integers(2, 50))
    barred = draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    size = draw(st.integers(1, n - len(barred)))
    options = {
        "loss": draw(st.sampled_from(["sigmoid", "softmax", "similarity"])),
        "n_chunks": draw(st.integers(1, 7)),
        "gain": draw(st.sampled_from([1.0, 0.4, 3.0])),
    }
    return n, size, barred, options, draw(st.sampled_from([0.0, 0.25, 1.0])), draw(st.sampled_from(tuple(CRITERIA)))


@pytest.mark.parametrize("name", SELECTIONS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=draws())
def test_a_selector_draws_what_draw_sub_batch_draws(name, case):
    n, size, barred, options, uniform_fraction, criterion = case
    scores, needs_pairs, shown = CASES[name]
    models = dict(zip(("learner", "reference"), learner_and_reference("clusters", n), strict=True))
    ask, pool = Asked(models), make_pool(n, size, barred)
    text = f"{name}/{criterion}" if scores else name
    selector = Selector.parse(text, **options, uniform_fraction=uniform_fraction)
    assert str(selector) == text and type(selector) is SELECTIONS[name]
    assert (selector.scores, selector.needs_pairs, selector.shown) == (scores, needs_pairs, shown)

    selection = selector.select(pool, ask, KEY)
    uniform_size = round(uniform_fraction * size)
    chunks = draw_sub_batch(
        models, pool.rows["valid"], pool.rows["example_id"], size=size, criterion=criterion if scores else None,
        seed=KEY.seed, step=KEY.step, start=0, total=n, ranks=Ranks(), selection=name, uniform_size=uniform_size,
        **options,
    )  # fmt: skip
    assert selection.indices.tolist() == torch.cat([chunk.indices for chunk in chunks]).tolist()
    assert len(set(selection.indices.tolist())) == size and not barred & set(selection.indices.tolist())
    assert [len(chunk.indices) for chunk in selection.chunks] == [len(chunk.indices) for chunk in chunks]

    assert ask.calls == [tuple(CRITERIA[criterion].weights) if scores else ()]  # once, for the models that score
    rest = size - uniform_size
    n_scored = len(chunk_sizes(rest, options["n_chunks"] if needs_pairs else 1)) if rest and scores else 0
    if not uniform_size and not scores:
        n_scored = 1
    assert list(selection.metrics) == [f"effective_sample_size/chunk_{k:02d}" for k in range(1, n_scored + 1)]


@pytest.mark.parametrize("name", SELECTIONS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 40))
def test_the_order_of_the_rows_does_not_matter(name, seed, n):
    """The noise of a row goes with its position in the super-batch, not with its place among the rows of the pool."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    models = dict(zip(("learner", "reference"), learner_and_reference("random", n), strict=True))
    shuffled = {model: scored.take(order) for model, scored in models.items()}
    selector = Selector.parse(f"{name}/learnability" if CASES[name][0] else name, loss="sigmoid", n_chunks=3)
    size = (n + 1) // 2
    plain = selector.select(make_pool(n, size, set()), Asked(models), KEY)
    other = selector.select(make_pool(n, size, set(), order), Asked(shuffled), KEY)
    assert order[other.indices].tolist() == plain.indices.tolist()


@pytest.mark.parametrize("name", SELECTIONS)
def test_noise_makes_steps_differ_but_not_of_the_highest_scores(name):
    models = dict(zip(("learner", "reference"), learner_and_reference("random", 60), strict=True))
    selector = Selector.parse(f"{name}/learnability" if CASES[name][0] else name, loss="sigmoid", gain=0.1)
    one, other = (
        selector.select(make_pool(60, 20, set()), Asked(models), DrawKey(0, step)).indices.tolist() for step in (1, 2)
    )
    assert (one == other) == (name == "top_k")


@pytest.mark.parametrize(
    "text", ["joint", "joint/", "joint/hardest", "uniform/learnability", "best/learnability", "", "/learnability"]
)
def test_what_names_no_selector_is_refused(text):
    scored = " or ".join(name for name, (scores, *_) in CASES.items() if scores)
    with pytest.raises(
        ValueError, match=f"a selector must be 'uniform', or {scored} with a criterion .* got '{text}'"
    ):
        Selector.parse(text)
