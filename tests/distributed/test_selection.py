# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Several ranks draw as one process with the whole super-batch, receive few bytes, and raise the same errors."""

from __future__ import annotations

import itertools
import random
import re
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jest_hf.distributed import Ranks
from jest_hf.selection import (
    CRITERIA,
    LOSSES,
    ContrastiveEmbeddings,
    PairwiseScores,
    draw_chunks,
    gumbel_noise,
    select_independently,
    select_jointly,
)
from jest_hf.selection.draw import Candidates
from jest_hf.selection.pair_terms import PAIR_LOSSES
from tests.distributed.processes import run
from tests.selection.models import learner_and_reference


CANDIDATE_BYTES = 16  # a key and a position


class Case(NamedTuple):
    """A super-batch, the shares of the ranks, and the arguments of the draw."""

    kind: str
    criterion: str
    loss: str
    shares: tuple[int, ...]
    size: int
    n_chunks: int
    gain: float
    eligible: torch.Tensor | None


def make_cases(world_size: int) -> list[Case]:
    """Every criterion with every loss, the rest at random."""
    rng = random.Random(world_size)
    cases = []
    for criterion, loss, kind in itertools.product(CRITERIA, LOSSES, ("random", "clusters", "extreme")):
        shares = tuple(
            rng.choice([40] * world_size if rng.random() < 0.5 else [0, 1, 17, 40, 90]) for _ in range(world_size)
        )
        total = sum(shares)
        eligible = None
        if rng.random() < 0.5:
            eligible = torch.tensor([rng.random() < 0.7 for _ in range(total)])
            # Sometimes all examples of one rank.
            eligible[: shares[0]] &= rng.random() < 0.7
            eligible[-1] = True
        n_eligible = total if eligible is None else int(eligible.sum())
        size = rng.choice([1, 5, max(1, n_eligible // 5), max(1, n_eligible // 2), n_eligible])
        cases.append(
            Case(
                kind,
                criterion,
                loss,
                shares,
                min(size, n_eligible),
                rng.choice([1, 2, 7, 16]),
                rng.choice([1, 0.3]),
                eligible,
            )
        )
    return cases


def share_of(case: Case, ranks: Ranks) -> tuple[PairwiseScores, torch.Tensor, torch.Tensor | None]:
    """Return scores, noise and eligible of one rank; with one rank, those of the whole super-batch."""
    total = sum(case.shares)
    start, stop = 0, total
    if ranks.size > 1:
        start = sum(case.shares[: ranks.rank])
        stop = start + case.shares[ranks.rank]
    models = (model.take(torch.arange(start, stop)) for model in learner_and_reference(case.kind, total))
    scores = PairwiseScores.from_embeddings(*models, case.criterion, case.loss)
    noise = gumbel_noise(0, case.size, case.n_chunks, total, start=start, stop=stop)
    return scores, noise, None if case.eligible is None else case.eligible[start:stop]


def draw_all(cases: list[Case]) -> list[tuple[list[int], list[float], list[int]]]:
    ranks, drawn = Ranks.world(), []
    for case in cases:
        scores, noise, eligible = share_of(case, ranks)
        chunks = list(draw_chunks(scores, case.size, case.n_chunks, case.gain, noise, eligible, ranks))
        pointwise = select_independently(scores.diagonal(), case.size, noise[0], case.gain, eligible, ranks)
        indices = torch.cat([chunk.indices for chunk in chunks])
        drawn.append((indices.tolist(), [chunk.effective_sample_size for chunk in chunks], pointwise.tolist()))
    return drawn


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_ranks_draws_what_one_does(world_size: int) -> None:
    cases = make_cases(world_size)
    alone = draw_all(cases)
    for drawn in run(world_size, draw_all, cases):
        for case, here, expected in zip(cases, drawn, alone, strict=True):
            assert here[0] == expected[0], case
            assert here[1] == pytest.approx(expected[1], rel=1e-4), case
            assert here[2] == expected[2], case


def draw_with_fresh_noise() -> tuple[list[int], list[int]]:
    ranks = Ranks.world()
    case = Case("clusters", "learnability", "sigmoid", (50, 30), 40, 4, 1.0, None)
    scores, _, _ = share_of(case, ranks)
    torch.manual_seed(ranks.rank)
    return [select_jointly(scores, 40, 4, ranks=ranks).tolist() for _ in range(2)]


def test_fresh_noise_is_that_of_the_first_rank() -> None:
    alone = draw_with_fresh_noise()
    assert alone[0] != alone[1]
    assert run(2, draw_with_fresh_noise) == [alone, alone]


def draw_among_equals(n_here: int) -> tuple[list[int], list[int]]:
    # softplus(128) is 128, and sums of it are exact, wherever an example lies in a tile.
    equals = ContrastiveEmbeddings(*torch.full((2, n_here, 4), 0.5), 128.0)
    scores = PairwiseScores.from_embeddings(equals, criterion="hard_learner")
    noise, ranks = torch.zeros(7, n_here), Ranks.world()
    jointly = select_jointly(scores, 120, 7, noise=noise, ranks=ranks)
    return jointly.tolist(), select_independently(noise[0], 120, ranks=ranks).tolist()


def test_equal_keys_are_drawn_by_global_position() -> None:
    assert run(3, draw_among_equals, 50) == [(list(range(120)), list(range(120)))] * 3


def collect_positions() -> tuple[list[int], list[int]]:
    ranks, own = Ranks.world(), torch.arange(40.0) + 40 * Ranks.world().rank
    candidates = Candidates(torch.ones(40, dtype=torch.bool), 40, [30], ranks)
    drawn = candidates.draw(torch.zeros(40, dtype=torch.float64), gumbel_noise(ranks.rank, 0, 1, 40)[0], 30)
    return drawn.indices.tolist(), candidates.collect(drawn, lambda taken: own[taken, None]).flatten().tolist()


def test_embeddings_arrive_in_the_order_of_drawing() -> None:
    """Otherwise the sums of float32 losses would depend on the shares."""
    for indices, collected in run(3, collect_positions):
        assert collected == indices
        assert len({index // 40 for index in indices}) == 3


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def measure(case: Case) -> tuple[list[int], int, int]:
    """Bytes that arrive up to each chunk and after the last, and the sizes of the share and of the largest tensor."""
    ranks = Ranks.world()
    scores, noise, eligible = share_of(case, ranks)
    received = [0]

    class Counted(Candidates):
        def draw(self, *arguments):
            drawn = super().draw(*arguments)
            received.append(ranks.bytes_received)
            return drawn

    with LargestTensor() as largest, pytest.MonkeyPatch.context() as patched:
        patched.setattr("jest_hf.selection.joint.Candidates", Counted)
        list(draw_chunks(scores, case.size, case.n_chunks, noise=noise, eligible=eligible, ranks=ranks))
    received.append(ranks.bytes_received)
    return received, scores.take(torch.arange(1)).nbytes, largest.numel


@pytest.mark.parametrize("shares", [(300,) * 4, (200, 400, 100, 500)])
@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_little_is_received_and_less_is_held(shares: tuple[int, ...], loss: str) -> None:
    case = Case("clusters", "learnability", loss, shares, 256, 8, 1.0, None)
    m, embedding_numbers = 32, 2 * (24 + 16)
    for rank, (received, embedding_bytes, largest) in enumerate(run(4, measure, case)):
        assert embedding_bytes == 4 * embedding_numbers
        chunks = [after - before for before, after in itertools.pairwise(received)]
        assert chunks.pop() == 0
        assert len(chunks) == 8
        candidates = 4 * m * CANDIDATE_BYTES
        assert 0 < chunks[0] <= candidates  # no embeddings yet
        for chunk in chunks[1:]:
            assert candidates / 2 < chunk <= candidates + m * embedding_bytes
        # The logits or the embeddings of the chunk: no [B, B] matrix and no copy of the embeddings of a share.
        assert largest <= max(m * shares[rank], m * embedding_numbers * len(shares)) < sum(shares) * embedding_numbers


def complain(calls: list[str]) -> list[str]:
    """Return the errors of faulty calls, all in one group, so that a rank that misses a collective breaks the next."""
    ranks, words = Ranks.world(), []
    case = Case("random", "learnability", "sigmoid", (30,) * 3, 20, 4, 1.0, None)
    good, noise, _ = share_of(case, ranks)
    learner, reference = learner_and_reference("random", 30)
    learner.image[[3, 29]] = torch.nan
    bad = PairwiseScores.from_embeddings(learner, reference)
    second, scores = ranks.rank == 1, good.diagonal()
    everybody, few = torch.ones(30, dtype=torch.bool), torch.arange(30) < 5
    faulty = {
        "nan": lambda: select_jointly(bad if second else good, 20, 4, noise=noise, ranks=ranks),
        "nan everywhere": lambda: select_jointly(bad, 20, 4, noise=noise, ranks=ranks),
        "pointwise": lambda: select_independently(scores / (0 if second else 1), 5, ranks=ranks),
        "too many": lambda: select_jointly(good, 16, 4, noise=noise, eligible=few, ranks=ranks),
        "matrix": lambda: select_jointly(PairwiseScores.from_matrix(torch.zeros(30, 30)), 20, ranks=ranks),
        "noise": lambda: select_jointly(good, 20, 4, noise=noise[:, second:], ranks=ranks),
        "noise of one": lambda: select_independently(scores, 20, noise[0] / (0 if second else 1), ranks=ranks),
        "eligible": lambda: select_jointly(good, 20, eligible=everybody.float() if second else None, ranks=ranks),
        "gain": lambda: select_jointly(good, 20, gain=0.0 if second else 1.0, ranks=ranks),
        "sizes": lambda: select_jointly(good, 20 + second, 4, ranks=ranks),
        "chunks": lambda: select_jointly(good, 20, 4 + second, ranks=ranks),
        "zero": lambda: select_jointly(good, 0, ranks=ranks),
    }
    for call in calls:
        with pytest.raises(ValueError) as error:
            faulty[call]()
        words.append(str(error.value))
    assert len(select_jointly(good, 20, 4, noise=noise, ranks=ranks)) == 20
    return words


COMPLAINTS = {
    "nan": r"2 of 90 candidates .* \(positions 33, 59; held by rank 1\)",
    "nan everywhere": r"6 of 90 candidates .* \(positions 3, 29, 33, 59, 63, 89; held by rank 0, 1, 2\)",
    "pointwise": r"30 of 90 candidates .* \(positions 30, 31, 32, .*, \.\.\.; held by rank 1\)",
    "too many": r"number of eligible examples, 15, got 16",
    "matrix": r"rank 0, 1, 2: a score matrix cannot be divided among 3 ranks",
    "noise": r"rank 1: noise must have shape \[4, 30\], got \[4, 29\]",
    "noise of one": r"rank 1: noise must be finite",
    "eligible": r"rank 1: eligible must be a bool tensor",
    "gain": r"rank 1: gain must be a positive finite number, got 0.0",
    "sizes": r"the same on all ranks, got \[20, 21, 20\] in \[4, 4, 4\] chunks",
    "chunks": r"the same on all ranks, got \[20, 20, 20\] in \[4, 5, 4\] chunks",
    "zero": r"rank 0, 1, 2: size must be at least 1, got 0",
}


def test_what_is_wrong_on_one_rank_is_raised_on_all() -> None:
    heard = run(3, complain, list(COMPLAINTS))
    assert heard[0] == heard[1] == heard[2]
    for words, pattern in zip(heard[0], COMPLAINTS.values(), strict=True):
        assert re.search(pattern, words), words
