# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients in chunks and over ranks against those of one process with the whole batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from jest_hf.distributed import Ranks
from jest_hf.losses import backward_in_chunks
from tests.distributed.launching import without_compiled_operators
from tests.distributed.processes import run
from tests.losses.direct import MODELS, direct, forward_of, pop_gradients, tiny_batch, tiny_model


SHARES = [5, 4]
STEPS = 2


def _own_batch() -> tuple[dict[str, Tensor], int]:
    rank = dist.get_rank()
    start = sum(SHARES[:rank])
    return {k: v[start : start + SHARES[rank]] for k, v in tiny_batch(sum(SHARES)).items()}, SHARES[rank]


def _under_ddp(name: str, n_chunks: int, exchange: str) -> tuple[Tensor, list[Tensor], int]:
    model, loss = tiny_model(name)
    wrapped = DistributedDataParallel(model)
    averaged = []

    def average(group, bucket):
        averaged.append(bucket.index())
        return allreduce_hook(group, bucket)

    wrapped.register_comm_hook(None, average)
    batch, n_rows = _own_batch()
    loss = partial(loss, tile_size=2, ranks=Ranks.world(), exchange=exchange)
    value = backward_in_chunks(forward_of(wrapped, batch), n_rows, n_chunks, loss, no_sync=wrapped.no_sync)
    return value, pop_gradients(model), len(averaged) - len(set(averaged))


@contextmanager
def _accumulate(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    model.set_is_last_backward(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
        model.set_is_last_backward(True)


def _under_fsdp2(name: str, n_chunks: int, synchronise: bool) -> tuple[Tensor, list[Tensor], int]:
    model, loss = tiny_model(name)
    # FSDP2 refuses parameters without dimensions, such as CLIP's.
    model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    batch, n_rows = _own_batch()
    loss = partial(loss, ranks=Ranks.world())
    no_sync = nullcontext if synchronise else partial(_accumulate, model)
    value = backward_in_chunks(forward_of(model, batch), n_rows, n_chunks, loss, no_sync=no_sync)
    return value, [gradient.full_tensor() for gradient in pop_gradients(model)], 0


def _under_zero(n_chunks: int) -> dict[str, list[Tensor]]:
    """The weights after some steps, by the name of DeepSpeed's optimizer."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(dist.get_rank()), "LOCAL_SIZE": str(len(SHARES))}
    import deepspeed

    without_compiled_operators()
    deepspeed.init_distributed(dist_backend="gloo")
    return dict(_zero_steps(deepspeed, stage, n_chunks) for stage in (1, 2, 3))


def _zero_steps(deepspeed: ModuleType, stage: int, n_chunks: int) -> tuple[str, list[Tensor]]:
    model, loss = tiny_model("siglip")
    zero = {"stage": stage, "reduce_bucket_size": 4096, "stage3_prefetch_bucket_size": 4096}
    engine, *_ = deepspeed.initialize(
        model=model.float(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,
            "zero_optimization": {**zero, "stage3_param_persistence_threshold": 0},
        },
    )
    batch, n_rows = _own_batch()
    batch["pixel_values"] = batch["pixel_values"].float()
    forward, loss = forward_of(engine, batch), partial(loss, ranks=Ranks.world())

    @contextmanager
    def no_sync() -> Iterator[None]:
        engine.set_gradient_accumulation_boundary(False)
        yield
        engine.set_gradient_accumulation_boundary(True)

    for _ in range(STEPS):
        backward_in_chunks(forward, n_rows, n_chunks, loss, engine.backward, no_sync)
        engine.step()
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        weights = [parameter.detach().clone() for parameter in model.parameters()]
    return f"{type(engine.optimizer).__name__} of stage {stage}", weights


@pytest.mark.parametrize(
    ("engine", "n_chunks", "option"),
    [
        (_under_ddp, 1, "gather"),
        (_under_ddp, 3, "gather"),
        (_under_ddp, 4, "ring"),
        (_under_fsdp2, 3, True),
        (_under_fsdp2, 3, False),
    ],
)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_averaged_gradients_are_those_of_the_whole_batch(name, engine, n_chunks, option):
    model, loss = tiny_model(name)
    n_rows = sum(SHARES)
    expected = direct(forward_of(model, tiny_batch(n_rows)), [slice(0, n_rows)], loss)
    expected_gradients = pop_gradients(model)
    for value, gradients, averaged_again in run(len(SHARES), engine, name, n_chunks, option):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        assert averaged_again == 0  # each bucket of gradients goes over the wire once, not once a chunk
        for gradient, other in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient.view_as(other), other, rtol=1e-6, atol=1e-9)


def test_weights_after_steps_of_zero_are_those_of_the_whole_batch():
    pytest.importorskip("deepspeed")
    model, loss = tiny_model("siglip")
    n_rows = sum(SHARES)
    forward = forward_of(model, tiny_batch(n_rows))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(STEPS):
        direct(forward, [slice(0, n_rows)], loss)
        optimizer.step()
        optimizer.zero_grad()
    for weights in run(len(SHARES), _under_zero, 3):
        assert list(weights) == [
            "DeepSpeedZeroOptimizer of stage 1",
            "DeepSpeedZeroOptimizer of stage 2",
            "DeepSpeedZeroOptimizer_Stage3 of stage 3",
        ]
        for of_stage in weights.values():
            for weight, other in zip(of_stage, model.parameters(), strict=True):
                torch.testing.assert_close(weight, other.detach().float(), rtol=1e-5, atol=1e-5)
