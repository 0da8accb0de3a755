# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses against double loops over the pairs, transformers' own losses and their memory bound."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from jest_hf.distributed import Ranks
from jest_hf.losses import LOSSES, contrastive, sigmoid_contrastive_loss, softmax_contrastive_loss
from tests.losses.memory import LargestTensor


KINDS = sorted(LOSSES)


def literal_sigmoid(image, text, scale, bias):
    """Mean over images of the sum over texts of -log sigmoid(y * logit), one pair at a time."""
    b = len(image)
    total = 0.0
    for i in range(b):
        for j in range(b):
            logit = scale * sum(x * y for x, y in zip(image[i].tolist(), text[j].tolist(), strict=True)) + bias
            margin = logit if i == j else -logit
            total += math.log1p(math.exp(-margin)) if margin > -700 else -margin
    return total / b


def literal_softmax(image, text, scale, bias):
    """Mean over pairs and directions of -log of the positive's share, one pair at a time."""
    b = len(image)
    logits = [
        [scale * sum(x * y for x, y in zip(image[i].tolist(), text[j].tolist(), strict=True)) + bias for j in range(b)]
        for i in range(b)
    ]
    total = 0.0
    for i in range(b):
        over_texts = sum(math.exp(logits[i][j] - logits[i][i]) for j in range(b))
        over_images = sum(math.exp(logits[j][i] - logits[i][i]) for j in range(b))
        total += (math.log(over_texts) + math.log(over_images)) / 2
    return total / b


LITERAL = {"sigmoid": literal_sigmoid, "softmax": literal_softmax}


def embeddings(b, dim, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, b, dim, dtype=torch.float64, generator=generator)
    text = text + image  # positives stand out, as in a trained model
    return F.normalize(image, dim=1).to(dtype), F.normalize(text, dim=1).to(dtype)


def loss_and_gradients(kind, image, text, scale, bias, **kwargs):
    inputs = [torch.as_tensor(x).detach().clone().requires_grad_() for x in (image, text, scale, bias)]
    loss = LOSSES[kind](*inputs, **kwargs)
    return [loss.detach(), *torch.autograd.grad(3.0 * loss, inputs)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    b=st.integers(1, 9),
    dim=st.integers(1, 5),
    scale=st.floats(0.1, 30),
    bias=st.floats(-12, 3),
    tile_size=st.none() | st.integers(1, 11),
    seed=st.integers(0, 1000),
)
def test_value_equals_the_double_loop(kind, b, dim, scale, bias, tile_size, seed):
    image, text = embeddings(b, dim, seed=seed)
    expected = LITERAL[kind](image, text, scale, bias)
    loss = LOSSES[kind](image, text, scale, bias, tile_size=tile_size)
    assert loss.shape == () and loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("tile_size", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, tile_size):
    image, text = embeddings(7, 3)
    scale = torch.tensor([4.0], dtype=torch.float64)
    bias = torch.tensor(-1.5, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (image, text, scale, bias)]
    assert torch.autograd.gradcheck(lambda *xs: LOSSES[kind](*xs, tile_size=tile_size), inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_form_is_differentiable_twice(kind):
    image, text = embeddings(4, 3)
    inputs = [x.requires_grad_() for x in (image, text, torch.tensor(4.0).double(), torch.tensor(-1.5).double())]
    assert torch.autograd.gradgradcheck(LOSSES[kind], inputs)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("tile_size", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_alone_ranks_and_exchange_change_nothing(kind, tile_size, exchange):
    image, text = embeddings(11, 5)
    expected = loss_and_gradients(kind, image, text, 9.0, -4.0, tile_size=tile_size)
    values = loss_and_gradients(kind, image, text, 9.0, -4.0, tile_size=tile_size, ranks=Ranks(), exchange=exchange)
    assert all(value.equal(other) for value, other in zip(values, expected, strict=True))


@pytest.mark.parametrize(("b", "tile_size"), [(37, 1), (37, 8), (37, 36), (64, 16), (37, 1000)])
@pytest.mark.parametrize("kind", KINDS)
def test_tiled_equals_dense(kind, b, tile_size):
    image, text = embeddings(b, 12)
    dense = loss_and_gradients(kind, image, text, 9.0, -4.0)
    tiled = loss_and_gradients(kind, image, text, 9.0, -4.0, tile_size=tile_size)
    for expected, value in zip(dense, tiled, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_default_is_dense_up_to_the_limit_and_tiled_beyond(kind, monkeypatch):
    image, text = embeddings(40, 6)
    reference = loss_and_gradients(kind, image, text, 9.0, -4.0)
    monkeypatch.setattr(contrastive, "DENSE_LIMIT", 16)
    with LargestTensor() as largest:
        values = loss_and_gradients(kind, image, text, 9.0, -4.0)
    assert largest.numel <= 16**2  # 16 * 16 // 40 = 6 rows of 40
    for expected, value in zip(reference, values, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_inputs_get_no_gradient_and_change_no_other(kind):
    image, text = embeddings(11, 4)
    expected = loss_and_gradients(kind, image, text, 5.0, -2.0, tile_size=4)
    trained = text.clone().requires_grad_()
    loss = LOSSES[kind](image, trained, 5.0, -2.0, tile_size=4)
    (3.0 * loss).backward()
    assert image.grad is None
    torch.testing.assert_close(trained.grad, expected[2])


def measured_run(kind, b, dim, tile_size):
    """Largest tensors of forward and backward, and the number of elements kept between them."""
    inputs = [x.requires_grad_() for x in embeddings(b, dim)]
    inputs += [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (9.0, -4.0)]
    kept = []

    def keep(x):
        kept.append(x.numel())
        return x

    with LargestTensor() as forward, saved_tensors_hooks(keep, lambda x: x):
        loss = LOSSES[kind](*inputs, tile_size=tile_size)
    with LargestTensor() as backward:
        loss.backward()
    return forward.numel, backward.numel, sum(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_tiled_memory_is_bounded_in_forward_and_backward(kind):
    b, dim, tile_size = 96, 5, 7
    forward, backward, kept = measured_run(kind, b, dim, tile_size)
    assert forward <= tile_size * b
    assert backward <= b * dim
    assert kept <= 2 * b * dim + 4
    dense_forward, dense_backward, dense_kept = measured_run(kind, b, dim, None)
    assert min(dense_forward, dense_backward, dense_kept) >= b * b  # the instruments do see a [b, b] matrix


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_is_computed_when_none_is_wanted(kind):
    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.aten.addmm_.default)
            return func(*args, **(kwargs or {}))

    image, text = (x.requires_grad_() for x in embeddings(20, 4))
    with torch.no_grad(), Products() as no_grad:
        loss = LOSSES[kind](image, text, 9.0, -4.0, tile_size=5)
    assert no_grad.count == 4 and not loss.requires_grad  # one product per tile
    with Products() as detached:
        loss = LOSSES[kind](image.detach(), text.detach(), 9.0, -4.0, tile_size=5)
    assert detached.count == 4 and not loss.requires_grad


@pytest.mark.parametrize("tile_size", [None, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_embeddings_are_accumulated_in_float32(kind, dtype, tile_size):
    image, text = embeddings(33, 16, dtype=dtype)
    scale, bias = torch.tensor([100.0]), torch.tensor([-10.0])
    low = loss_and_gradients(kind, image, text, scale, bias, tile_size=tile_size)
    exact = loss_and_gradients(kind, image.double(), text.double(), scale.double(), bias.double())
    assert low[0].dtype == torch.float32
    assert [x.dtype for x in low[1:]] == [dtype, dtype, torch.float32, torch.float32]
    assert [x.shape for x in low[1:]] == [x.shape for x in (image, text, scale, bias)]
    torch.testing.assert_close(low[0].double(), exact[0], rtol=1e-5, atol=1e-5)
    for value, expected in zip(low[1:], exact[1:], strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("tile_size", [None, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_downcast(kind, tile_size):
    image, text = embeddings(33, 16, dtype=torch.float32)
    expected = loss_and_gradients(kind, image, text, 100.0, -10.0, tile_size=tile_size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, *_ = loss_and_gradients(kind, image, text, 100.0, -10.0, tile_size=tile_size)
    assert loss.dtype == torch.float32
    assert loss.equal(expected[0])


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("bias", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_are_finite(kind, sign, bias, tile_size):
    image, _ = embeddings(10, 4, dtype=torch.float32)
    values = loss_and_gradients(kind, image, sign * image, 200.0, bias, tile_size=tile_size)
    assert all(x.isfinite().all() for x in values)
    exact = loss_and_gradients(kind, image.double(), sign * image.double(), 200.0, bias)
    torch.testing.assert_close(values[0].double(), exact[0], rtol=1e-5, atol=1e-5)


def test_sigmoid_sums_over_negatives():
    # Orthogonal pairs at scale 0: every one of the b * b terms is log 2, and each image has b of them.
    image, text = torch.eye(6), torch.eye(6)
    assert sigmoid_contrastive_loss(image, text, 0.0).item() == pytest.approx(6 * math.log(2))
    assert sigmoid_contrastive_loss(image, text, 0.0, -10.0).item() == pytest.approx(10, abs=1e-3)


@pytest.mark.parametrize("tile_size", [None, 3])
def test_softmax_bias_has_no_effect_but_is_used(tile_size):
    image, text = embeddings(8, 4)
    bias = torch.tensor([-10.0], requires_grad=True)
    loss = softmax_contrastive_loss(image, text, 10.0, bias, tile_size=tile_size)
    assert loss.equal(softmax_contrastive_loss(image, text, 10.0, tile_size=tile_size))
    loss.backward()
    assert bias.grad.equal(torch.zeros(1))


TINY_TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_inputs(b=6):
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(b, 3, 16, 16, generator=generator),
        "input_ids": torch.randint(2, 30, (b, 8), generator=generator),
    }


@pytest.mark.parametrize("tile_size", [None, 4])
def test_equals_the_loss_of_transformers_siglip(tile_size):
    torch.manual_seed(0)
    model = SiglipModel(
        SiglipConfig(
            text_config={**TINY_TOWER, "vocab_size": 32, "max_position_embeddings": 8, "projection_size": 16},
            vision_config={**TINY_TOWER, "image_size": 16, "patch_size": 8},
        )
    ).eval()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-3)
    output = model(**tiny_inputs(), return_loss=True)
    loss = sigmoid_contrastive_loss(
        output.image_embeds, output.text_embeds, model.logit_scale.exp(), model.logit_bias, tile_size=tile_size
    )
    torch.testing.assert_close(loss, output.loss)
    assert_equal_gradients(model, loss, output.loss)


@pytest.mark.parametrize("tile_size", [None, 4])
def test_equals_the_loss_of_transformers_clip(tile_size):
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**TINY_TOWER, "vocab_size": 32, "max_position_embeddings": 8, "eos_token_id": 31},
            vision_config={**TINY_TOWER, "image_size": 16, "patch_size": 8},
            projection_dim=12,
        )
    ).eval()
    output = model(**tiny_inputs(), return_loss=True)
    loss = softmax_contrastive_loss(
        output.image_embeds, output.text_embeds, model.logit_scale.exp(), tile_size=tile_size
    )
    torch.testing.assert_close(loss, output.loss)
    assert_equal_gradients(model, loss, output.loss)


def assert_equal_gradients(model, loss, expected):
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    for value, reference in zip(gradients, torch.autograd.grad(expected, parameters, allow_unused=True), strict=True):
        assert (value is None) == (reference is None)
        if value is not None:
            torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while tracing
@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile(kind, tile_size):
    image, text = embeddings(8, 4, dtype=torch.float32)
    expected = loss_and_gradients(kind, image, text, 10.0, -5.0, tile_size=tile_size)
    inputs = [torch.as_tensor(x).detach().clone().requires_grad_() for x in (image, text, 10.0, -5.0)]
    torch._dynamo.reset()
    compiled = torch.compile(LOSSES[kind], backend="aot_eager", fullgraph=True)
    loss = compiled(*inputs, tile_size=tile_size)
    values = [loss.detach(), *torch.autograd.grad(3.0 * loss, inputs)]
    for value, reference in zip(values, expected, strict=True):
        torch.testing.assert_close(value, reference)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("image", "text", "kwargs", "message"),
    [
        (torch.ones(3, 4), torch.ones(2, 4), {}, r"\[3, 4\] and \[2, 4\]"),
        (torch.ones(3, 4), torch.ones(3, 5), {}, r"\[3, 4\] and \[3, 5\]"),
        (torch.ones(4), torch.ones(4), {}, r"two \[b, D\] matrices"),
        (torch.ones(0, 4), torch.ones(0, 4), {}, "b >= 1"),
        (torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4), {}, "floating point"),
        (torch.ones(3, 4), torch.ones(3, 4), {"scale": torch.ones(3)}, "scale must be one number"),
        (torch.ones(3, 4), torch.ones(3, 4), {"bias": torch.ones(3, 3)}, "bias must be one number"),
        (torch.ones(3, 4), torch.ones(3, 4), {"tile_size": 0}, "tile_size must be at least 1, but is 0"),
        (
            torch.ones(3, 4),
            torch.ones(3, 4),
            {"exchange": "star"},
            "exchange='star' is unknown: use one of gather, ring",
        ),
    ],
)
def test_wrong_arguments_are_named(kind, image, text, kwargs, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[kind](image, text, **{"scale": 10.0, **kwargs})
