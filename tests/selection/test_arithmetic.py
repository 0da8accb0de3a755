# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Precision of products, devices without float64, and a draw that depends on no value until it is done."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jest_hf.distributed import Ranks
from jest_hf.selection import CRITERIA, ContrastiveEmbeddings, PairwiseScores, draw_chunks, gumbel_noise, noise_at
from jest_hf.selection import arithmetic as arithmetic_
from jest_hf.selection.arithmetic import PRECISIONS, products, wide_dtype
from jest_hf.selection.draw import Candidates
from jest_hf.selection.joint import _draw, chunk_sizes
from tests.selection import literal
from tests.selection.models import learner_and_reference


PAIRED = ("sigmoid", "softmax")


# ---- Products ----


def test_products_on_cuda_have_the_precision_that_is_asked_for_and_no_other_products():
    settings, cuda = torch.backends.cuda.matmul, torch.device("cuda")
    before, was_autocast = settings.fp32_precision, torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        for outside in ("ieee", "tf32"):
            for precision, expected in {"float32": "ieee", "tf32": "tf32", "bfloat16": "ieee"}.items():
                settings.fp32_precision = outside
                with pytest.raises(KeyError), products(precision, cuda):
                    assert settings.fp32_precision == expected
                    assert not torch.is_autocast_enabled("cuda")
                    raise KeyError
                assert settings.fp32_precision == outside and torch.is_autocast_enabled("cuda")
        with products("tf32", torch.device("cpu")):
            assert settings.fp32_precision == outside
    finally:
        settings.fp32_precision = before
        torch.set_autocast_enabled("cuda", was_autocast)


@pytest.mark.parametrize("loss", PAIRED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bfloat16_rounds_the_factors_and_nothing_else(loss, dtype):
    model, _ = learner_and_reference("clusters", 150, dtype=dtype)
    scores = PairwiseScores.from_embeddings(model, criterion="hard_learner", loss=loss, precision="bfloat16")
    assert scores.diagonal().dtype == torch.float32
    exact = PairwiseScores.from_embeddings(model, criterion="hard_learner", loss=loss)
    assert torch.equal(scores.diagonal(), exact.diagonal())
    drawn = torch.arange(40)
    running = scores.start()
    running.add(scores.take(drawn))

    rounded = model.image.bfloat16().double(), model.text.bfloat16().double()
    scaled = [(part[drawn].float() * model.logit_scale).bfloat16().double() for part in (model.image, model.text)]
    logits = [one @ other.T + model.logit_bias for one, other in zip(rounded, reversed(scaled), strict=True)]
    if loss == "sigmoid":
        expected = sum(F.softplus(one).sum(dim=1) for one in logits)
    else:
        expected = sum(one.logsumexp(dim=1) for one in logits) / 2
    torch.testing.assert_close(running.total()[40:], expected[40:], rtol=2e-5, atol=1e-5)


def terms(precision):
    scores = PairwiseScores.from_embeddings(*learner_and_reference("extreme", 300), precision=precision)
    running = scores.start()
    running.add(scores.take(torch.arange(60)))
    return running.total()


def test_tf32_is_float32_on_a_cpu_and_bfloat16_is_not():
    assert torch.equal(terms("tf32"), terms("float32"))
    difference = (terms("bfloat16") - terms("float32")).abs()
    assert 1e-3 < difference.max() < 100


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of float32, tf32, bfloat16, got 'float16'"):
        PairwiseScores.from_embeddings(*learner_and_reference("random", 20), precision="float16")


# ---- Devices without float64 ----


def test_only_mps_has_no_float64():
    found = {name: wide_dtype(torch.device(name)) for name in ("cpu", "cuda", "mps", "xpu")}
    assert found == {"cpu": torch.float64, "cuda": torch.float64, "mps": torch.float32, "xpu": torch.float64}


class NoFloat64(TorchDispatchMode):
    """Refuse to make a float64 tensor, as MPS does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            assert not (isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64), func
        return result


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("loss", PAIRED)
def test_a_device_without_float64_draws_the_same(criterion, loss, monkeypatch):
    learner, reference = learner_and_reference("clusters", 200)
    noise = gumbel_noise(0, 0, 6, 200)
    losses = literal.signed_losses(learner, reference, criterion, loss)
    expected = literal.select_jointly(losses, 60, 6, noise)
    sizes = [
        chunk.effective_sample_size
        for chunk in draw_chunks(
            PairwiseScores.from_embeddings(learner, reference, criterion, loss), 60, 6, noise=noise
        )
    ]
    monkeypatch.setattr(arithmetic_, "wide_dtype", lambda device: torch.float32)
    assert torch.equal(gumbel_noise(0, 0, 6, 200), noise)  # made on the CPU, and moved
    with NoFloat64():
        scores = PairwiseScores.from_embeddings(learner, reference, criterion, loss)
        chunks = list(draw_chunks(scores, 60, 6, noise=noise))
    assert torch.cat([chunk.indices for chunk in chunks]).tolist() == expected
    assert [chunk.effective_sample_size for chunk in chunks] == pytest.approx(sizes, rel=1e-3)


# ---- A host that does not wait ----


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("loss", [*PAIRED, "similarity"])
@pytest.mark.parametrize("uniform", [0, 5])
def test_nothing_in_a_draw_depends_on_a_value(precision, loss, uniform):
    """Tensors on the device `meta` have no values, and refuse each operation whose result or shape depends on one."""
    device = torch.device("meta")
    image, text = torch.empty(2, 90, 8, device=device)
    models = ContrastiveEmbeddings(image, text, 10.0, -10.0), ContrastiveEmbeddings(text, image, 5.0)
    scores = PairwiseScores.from_embeddings(*models, loss=loss, precision=precision)
    sizes = [uniform] * (uniform > 0) + chunk_sizes(30, 4)
    noise = noise_at(0, 1, len(sizes), torch.arange(90, device=device))
    available = torch.ones(90, dtype=torch.bool, device=device)
    candidates = Candidates(available, 90, sizes, Ranks())
    drawn = list(_draw(scores, scores.diagonal().double(), candidates, sizes, 0.5, noise, uniform > 0))
    assert [(draw.indices.device, len(draw.indices), len(draw.log_sums)) for draw in drawn] == [
        (device, size, 2) for size in sizes
    ]
    with pytest.raises((RuntimeError, NotImplementedError)):
        list(draw_chunks(scores, 30, 4))  # which reads numbers, at its beginning and at its end
