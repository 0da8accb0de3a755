# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation losses of one process: values and gradients against loops, and limits that are other losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jest_hf.losses import DISTILLATION, LOSSES
from jest_hf.selection import ContrastiveEmbeddings


KINDS = sorted(DISTILLATION)


def embeddings(n: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, n, width, generator=generator, dtype=torch.float64)
    return F.normalize(image).to(dtype), F.normalize(text + image).to(dtype)


def make_teacher(n: int, seed: int = 1, scale: float = 12.0, bias: float | None = -6.0) -> ContrastiveEmbeddings:
    return ContrastiveEmbeddings(*embeddings(n, 5, seed), scale, bias)


def literal(kind: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, teacher: ContrastiveEmbeddings):
    """Compute the loss pair by pair, as in the docstrings."""
    logits, n = scale * image @ text.T + bias, len(image)
    target = teacher.logit_scale * teacher.image.double() @ teacher.text.double().T + teacher.logit_bias
    if kind == "sigmoid":
        q = target.sigmoid()
        pairs = [
            -(q[i, j] * F.logsigmoid(logits[i, j]) + (1 - q[i, j]) * F.logsigmoid(-logits[i, j]))
            for i in range(n)
            for j in range(n)
        ]
        return sum(pairs) / n
    of_images = [-(target[i].softmax(0) * logits[i].log_softmax(0)).sum() for i in range(n)]
    of_texts = [-(target[:, j].softmax(0) * logits[:, j].log_softmax(0)).sum() for j in range(n)]
    return (sum(of_images) + sum(of_texts)) / (2 * n)


def with_gradients(loss, *inputs) -> list[Tensor]:
    inputs = [torch.as_tensor(x).detach().clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(2 * value, inputs)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile_size", [None, 1, 4, 9, 100])
@pytest.mark.parametrize("scale", [3.0, 100.0])
def test_values_and_gradients_are_the_literal_ones(kind, tile_size, scale):
    teacher = make_teacher(9)
    inputs = (*embeddings(9, 7, 0), torch.tensor(scale, dtype=torch.float64), torch.tensor(-4.0, dtype=torch.float64))
    expected = with_gradients(lambda *x: literal(kind, *x, teacher), *inputs)
    got = with_gradients(lambda *x: DISTILLATION[kind](*x, teacher=teacher, tile_size=tile_size), *inputs)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_sure_of_the_diagonal_gives_the_contrastive_loss(kind):
    sure = ContrastiveEmbeddings(torch.eye(6), torch.eye(6), 400.0, -200.0)
    inputs = (*embeddings(6, 7, 0, torch.float32), torch.tensor(8.0), torch.tensor(-4.0))
    expected = with_gradients(LOSSES[kind], *inputs)
    got = with_gradients(lambda *x: DISTILLATION[kind](*x, teacher=sure), *inputs)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_that_agrees_has_nothing_to_learn(kind):
    teacher = make_teacher(8)
    inputs = (teacher.image, teacher.text, teacher.logit_scale, teacher.logit_bias)
    inputs = [torch.as_tensor(x, dtype=torch.float64) for x in inputs]
    value, *gradients = with_gradients(lambda *x: DISTILLATION[kind](*x, teacher=teacher), *inputs)
    assert max(gradient.abs().max() for gradient in gradients) < 1e-12
    elsewhere = DISTILLATION[kind](*embeddings(8, 5, 3), *inputs[2:], teacher=teacher)
    assert value < elsewhere


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_is_computed_with_in_float32_also_under_autocast(kind):
    image, text = embeddings(9, 7, 0, torch.bfloat16)
    teacher = ContrastiveEmbeddings(*embeddings(9, 5, 1, torch.bfloat16), 12.0, -6.0)
    scale_and_bias = torch.tensor([100.0, -4.0])
    exact_inputs = (image.double(), text.double(), *scale_and_bias.double())
    expected = with_gradients(lambda *x: literal(kind, *x, teacher), *exact_inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = with_gradients(lambda *x: DISTILLATION[kind](*x, teacher=teacher), image, text, *scale_and_bias)
    assert [x.dtype for x in got] == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    for gradient, exact in zip(got[1:3], expected[1:3], strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=2**-7, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_double = DISTILLATION[kind](*exact_inputs, teacher=teacher)
    torch.testing.assert_close(in_double, expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_gets_no_gradient(kind):
    teacher = make_teacher(4)
    teacher.image.requires_grad_()
    image, text = (x.requires_grad_() for x in embeddings(4, 7, 0))
    DISTILLATION[kind](image, text, 10.0, teacher=teacher).backward()
    assert image.grad is not None and teacher.image.grad is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher": make_teacher(5)}, "teacher must embed the same 4 rows as the learner, but embeds 5"),
        ({"text": torch.zeros(3, 7)}, r"two \[b, D\] matrices of the same shape"),
        ({"tile_size": 0}, "tile_size must be at least 1"),
        ({"exchange": "post"}, "exchange='post' is unknown"),
    ],
)
def test_wrong_arguments(arguments, message):
    image, text = embeddings(4, 7, 0)
    for loss in DISTILLATION.values():
        with pytest.raises(ValueError, match=message):
            loss(**{"image": image, "text": text, "scale": 10.0, "teacher": make_teacher(4), **arguments})
