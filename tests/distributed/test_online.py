# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Models beside the learner over ranks: one model, bit by bit, and that of one process; whole under ZeRO too."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from transformers import SiglipModel
from transformers.integrations import HfDeepSpeedConfig

from jest_hf.distributed import Ranks, Shares
from jest_hf.models import expose_temperature
from jest_hf.training.online_model import OnlineReference, fresh_like
from tests.distributed.launching import without_compiled_operators
from tests.distributed.processes import run
from tests.helpers import tiny_siglip
from tests.online import assert_equal, own_rows, state_of, tiny_batch, tiny_online


STEPS = 3
SHARES = {1: [9], 2: [6, 3], 3: [2, 6, 1]}  # rows of each rank, by the number of ranks


def trained(kind, folder, shares, chunk_size, dtype):
    """Steps on batches of which each rank has its own rows, from weights that are the first rank's alone."""
    ranks = Ranks.world()
    online = tiny_online(
        kind,
        folder,
        seed=ranks.rank,
        ranks=ranks,
        chunk_size=chunk_size,
        dtype=dtype,
        weight_decay=0.1,
        # A gradient's scale shows: Adam alone would not feel it, and of these models clipping spares the ViT.
        adam_epsilon=0.1,
        max_grad_norm=5.0,
    )
    batches = [own_rows(tiny_batch(kind, sum(shares), seed, dtype), shares, ranks.rank) for seed in range(STEPS)]
    losses = [online.step(batch) for batch in batches]
    return losses, state_of(online)


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("kind", ["siglip", "clip", "vit"])
@pytest.mark.parametrize("world_size", SHARES)
def test_all_ranks_hold_the_model_of_one_process(tmp_path, world_size, kind, chunk_size):
    expected_losses, expected = trained(kind, tmp_path, [9], None, torch.float64)
    outcomes = run(world_size, trained, kind, tmp_path, SHARES[world_size], chunk_size, torch.float64)
    for losses, state in outcomes:
        assert losses == pytest.approx(expected_losses, rel=1e-6)
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-9)
    # In the precision of training, where sums over ranks round.
    (first_losses, first), *others = run(
        world_size, trained, kind, tmp_path, SHARES[world_size], chunk_size, torch.float32
    )
    for losses, state in others:
        assert losses == first_losses
        assert_equal(state, first)


def test_statistics_of_batch_norm_are_the_same_on_all_ranks(tmp_path):
    (_, first), (_, second) = run(2, trained, "resnet", tmp_path, [5, 4], None, torch.float32)
    assert_equal(first, second)


def learned_and_saved(folder, readable):
    """An online reference learns from super-batches of four rows a rank; two steps, saved, one more."""
    ranks = Ranks.world()
    online = tiny_online("siglip", folder, ranks=ranks, name="online_reference", dtype=torch.float64)
    reference = OnlineReference(online)
    for seed in range(STEPS):
        batch = tiny_batch("siglip", 8, seed, torch.float64)
        batch["valid"] = torch.tensor(readable)
        batch["pixel_values"][~batch["valid"]] = torch.nan
        batch = own_rows(batch, [8 // ranks.size] * ranks.size, ranks.rank)
        reference.learn(batch, Shares.of(ranks, batch["valid"]))
        if seed == 1:
            online.save(folder / f"by-rank-{ranks.rank}/checkpoint-2")
    return state_of(online)


# The second rank has one, or none at all.
@pytest.mark.parametrize("readable", [[1, 1, 0, 1, 0, 0, 1, 0], [1, 1, 0, 1, 0, 0, 0, 0]])
def test_an_online_reference_learns_what_can_be_read_anywhere(tmp_path, readable):
    readable = [bool(value) for value in readable]
    alone = learned_and_saved(tmp_path / "alone", readable)
    first, second = run(2, learned_and_saved, tmp_path / "two", readable)
    assert_equal(first, second)
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-9)
    # What two ranks have saved, one can go on from: the first one alone has written.
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["by-rank-0"]
    resumed = tiny_online("siglip", tmp_path, seed=3, name="online_reference", dtype=torch.float64)
    resumed.load(tmp_path / "two/by-rank-0/checkpoint-2")
    batch = tiny_batch("siglip", 8, STEPS - 1, torch.float64)
    resumed.step({name: value[torch.tensor(readable)] for name, value in batch.items()})
    torch.testing.assert_close(state_of(resumed), first, rtol=0, atol=1e-9)


def broken_on_the_last_rank(folder):
    ranks = Ranks.world()
    online = tiny_online("vit", folder, ranks=ranks)
    batch = tiny_batch("vit", 3, ranks.rank)
    if ranks.rank == ranks.size - 1:
        batch["pixel_values"][0] = torch.inf
    with pytest.raises(FloatingPointError, match="step 1 of the proxy"):
        online.step(batch)
    return True


def test_gradients_that_are_broken_on_one_rank_end_the_run_on_all(tmp_path):
    assert run(2, broken_on_the_last_rank, tmp_path) == [True, True]


def beside_a_deepspeed_engine(folder, stage):
    """A learner in an engine and an online model like it, made where ZeRO-3 partitions every model, step by step."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(dist.get_rank()), "LOCAL_SIZE": "2"}
    import deepspeed

    without_compiled_operators()
    deepspeed.init_distributed(dist_backend="gloo")
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    setting = HfDeepSpeedConfig(config)  # transformers holds it by a weak reference
    learner = SiglipModel.from_pretrained(folder / "learner")
    expose_temperature(learner)
    engine, *_ = deepspeed.initialize(
        model=learner, optimizer=torch.optim.SGD(learner.parameters(), lr=0.05), config=config
    )
    assert setting.is_zero3() == (stage == 3) == any(weight.numel() == 0 for weight in learner.parameters())

    ranks = Ranks.world()
    online = tiny_online("siglip", folder, model=fresh_like(learner, seed=4), ranks=ranks, dtype=torch.float64)
    for seed in range(STEPS):
        batch = own_rows(tiny_batch("siglip", 9, seed), [5, 4], ranks.rank)
        engine.backward(online.objective.loss(online.reader(engine, batch), batch, ranks))
        engine.step()
        online.step(own_rows(tiny_batch("siglip", 9, seed, torch.float64), [5, 4], ranks.rank))
    return type(engine.optimizer).__name__, state_of(online)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_online_model_is_whole_beside_a_deepspeed_engine(tmp_path, stage):
    pytest.importorskip("deepspeed")
    tiny_siglip(0).save_pretrained(tmp_path / "learner")
    alone = tiny_online("siglip", tmp_path, model=fresh_like(tiny_siglip(0), seed=4), dtype=torch.float64)
    for seed in range(STEPS):
        alone.step(tiny_batch("siglip", 9, seed, torch.float64))
    (engine, first), (_, second) = run(2, beside_a_deepspeed_engine, tmp_path, stage)
    assert engine == ("DeepSpeedZeroOptimizer_Stage3" if stage == 3 else "DeepSpeedZeroOptimizer")
    assert_equal(first, second)
    torch.testing.assert_close(first, state_of(alone), rtol=0, atol=1e-9)
