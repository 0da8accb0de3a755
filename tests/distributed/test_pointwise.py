# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Examples without pairs over several processes: losses, gradients, weights, metrics and files of one process."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jest_hf.data.rows import Rows, share_batches
from jest_hf.distributed import Ranks
from jest_hf.losses.pointwise import mean_over_ranks
from jest_hf.reference import identify_reference
from jest_hf.reference.losses import IrreducibleLosses
from tests.distributed.processes import run
from tests.objectives.labelled import KINDS, prepared


SHARES = [[8], [5, 3], [2, 5, 1]]
STEPS = 4


class Collective(nn.Module):
    """A model whose every forward waits for all ranks, as an engine's does."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.model, self.ranks, self.forwards = model, ranks, 0

    def forward(self, **inputs: Tensor) -> object:
        self.forwards += 1
        assert len(set(self.ranks.gather_counts(self.forwards))) == 1
        return self.model(**inputs)


def _own(shares: list[int], rank: int) -> slice:
    ends = [0, *accumulate(shares)]
    return slice(ends[rank], ends[rank + 1])


def _train(name: str, shares: list[int], ranks: Ranks) -> list[Tensor]:
    """All losses, the gradients of the first step and the weights after the last."""
    model, objective, reader, collator, rows = prepared(name, STEPS * sum(shares), label_smoothing=0.1)
    wrapped = DistributedDataParallel(model) if ranks.group is not None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses, gradients = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        batch = collator(rows[step * sum(shares) : (step + 1) * sum(shares)])
        own = {key: value[_own(shares, ranks.rank)] for key, value in batch.items()}
        loss = objective.loss(reader(wrapped.train(), own), own, ranks)
        loss.backward()
        losses.append(loss.detach())
        gradients = gradients or [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    return [*losses, *gradients, *(p.detach() for p in model.parameters())]


def _train_all(shares: list[int]) -> dict[str, list[Tensor]]:
    # Dropout would differ between one process and several.
    return {name: _train(name, shares, Ranks.world()) for name in ("vit", "llama")}


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_losses_gradients_and_weights_are_those_of_one_process(shares: list[int]) -> None:
    of_ranks = run(len(shares), _train_all, shares)
    for name in of_ranks[0]:
        expected = _train(name, [sum(shares)], Ranks())
        first, *others = (results[name] for results in of_ranks)
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6)
        for other in others:
            assert all(x.equal(y) for x, y in zip(other, first, strict=True))  # to the bit


def _means(shares: list[int]) -> tuple[Tensor, Tensor]:
    ranks = Ranks.world()
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(sum(shares), generator=generator)[_own(shares, ranks.rank)].requires_grad_()
    mean = mean_over_ranks(losses, ranks)
    (2 * mean).backward()
    return mean.detach(), losses.grad


@pytest.mark.parametrize("shares", [*SHARES, [3, 0, 2]], ids=str)
def test_the_mean_is_over_all_examples_and_its_gradient_is_to_be_averaged(shares: list[int]) -> None:
    expected = torch.rand(sum(shares), generator=torch.Generator().manual_seed(0)).mean()
    for rank, (mean, gradient) in enumerate(run(len(shares), _means, shares)):
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(gradient, torch.full((shares[rank],), 2 * len(shares) / sum(shares)))


def _evaluate(name: str, n_rows: int) -> tuple[dict[str, float], Tensor]:
    ranks = Ranks.world()
    model, objective, reader, collator, rows = prepared(name, n_rows)
    rows[1] = {**rows[1], "image": None, "text": ""}
    eval_collator = objective.eval_collator(collator)
    batches = [eval_collator([rows[index] for index in batch]) for batch in share_batches(n_rows, 3, ranks)]
    results = objective.evaluate(reader, Collective(model, ranks), batches, torch.device("cpu"), ranks)
    return results.metrics(), torch.from_numpy(results.predictions)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_is_that_of_one_process(name: str, world_size: int) -> None:
    """Four batches, so that one of three ranks has empty ones."""
    metrics, predictions = _evaluate(name, 10)
    for other_metrics, other_predictions in run(world_size, _evaluate, name, 10):
        assert other_metrics == metrics and other_predictions.allclose(predictions, rtol=0, atol=0, equal_nan=True)


def _irreducible(path: str, n_rows: int) -> tuple[Tensor, Tensor, int]:
    ranks = Ranks.world()
    model, _, reader, collator, rows = prepared("vit", n_rows)
    rows[4] = {**rows[4], "image": None}
    wrapped = Collective(model, ranks)
    losses = IrreducibleLosses.compute(
        path,
        reader,
        wrapped,
        Rows(rows),
        collator,
        reference=identify_reference(model),
        batch_size=3,
        disable_tqdm=True,
        ranks=ranks,
    )
    return losses.losses, losses.valid, wrapped.forwards


@pytest.mark.parametrize("world_size", [2, 3])
def test_irreducible_losses_are_computed_by_all_once(tmp_path: Path, world_size: int) -> None:
    losses, valid, _ = _irreducible(str(tmp_path / "alone"), 10)
    assert valid.tolist() == [index != 4 for index in range(10)]
    path = tmp_path / "together"
    for expected_forwards in (2, 0):  # the second time they are read
        for other_losses, other_valid, forwards in run(world_size, _irreducible, str(path), 10):
            assert other_losses.equal(losses) and other_valid.equal(valid) and forwards == expected_forwards
    assert path.read_bytes() == (tmp_path / "alone").read_bytes()


def _refused(path: str) -> str:
    try:
        _irreducible(path, 11)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "accepted"


def test_a_foreign_file_is_refused_on_every_rank(tmp_path: Path) -> None:
    path = tmp_path / "losses"
    _irreducible(str(path), 10)
    for message in run(2, _refused, str(path)):
        assert "do not match this run: data.n_rows was 10, and in this run it is 11" in message
