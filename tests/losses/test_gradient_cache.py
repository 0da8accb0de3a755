# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients in chunks against those of one forward and one backward of everything."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from jest_hf.losses import backward_in_chunks
from tests.losses.direct import MODELS, direct, forward_of, pop_gradients, tiny_batch, tiny_model
from tests.losses.memory import SavedActivations


N_ROWS = 7


def assert_same(values: list[Tensor | None], expected: list[Tensor | None], **tolerance: float) -> None:
    tolerance = tolerance or {"rtol": 1e-9, "atol": 1e-12}
    for value, other in zip(values, expected, strict=True):
        assert (value is None) == (other is None)
        if value is not None:
            torch.testing.assert_close(value, other, **tolerance)


# 7 rows: one chunk, chunks of 3 and 4, of 2 and 1, of 1.
@pytest.mark.parametrize("n_chunks", [1, 2, 4, 7])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_gradients_equal_direct_ones(name, n_chunks):
    model, loss = tiny_model(name)
    forward = forward_of(model, tiny_batch(N_ROWS))
    expected = direct(forward, [slice(0, N_ROWS)], loss)
    gradients = pop_gradients(model)
    value = backward_in_chunks(forward, N_ROWS, n_chunks, loss)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert_same(pop_gradients(model), gradients)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_dropout_is_the_same_in_both_forwards_and_draws_as_one_forward_does(name):
    model, loss = tiny_model(name, dropout=0.4)
    forward = forward_of(model, tiny_batch(N_ROWS))
    torch.manual_seed(3)
    expected = direct(forward, [slice(0, 2), slice(2, 4), slice(4, 7)], loss)
    state, gradients = torch.get_rng_state(), pop_gradients(model)

    torch.manual_seed(3)
    value = backward_in_chunks(forward, N_ROWS, 3, loss)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    assert_same(pop_gradients(model), gradients)
    assert torch.get_rng_state().equal(state)

    torch.manual_seed(4)
    assert not backward_in_chunks(forward, N_ROWS, 3, loss).isclose(expected)  # there is dropout


@pytest.mark.parametrize("name", sorted(MODELS))
def test_only_one_chunk_is_alive(name):
    model, loss = tiny_model(name)
    n_rows, n_chunks = 24, 6
    forward = forward_of(model, tiny_batch(n_rows))
    loss = partial(loss, tile_size=2)
    with SavedActivations(model.parameters()) as cached:
        backward_in_chunks(forward, n_rows, n_chunks, loss)
    with SavedActivations(model.parameters()) as chunk:
        direct(forward, [slice(0, n_rows // n_chunks)], loss)
    with SavedActivations(model.parameters()) as whole:
        direct(forward, [slice(0, n_rows)], loss)
    assert cached.bytes == 0
    assert cached.peak <= chunk.peak
    assert whole.peak > 5 * chunk.peak


def test_under_autocast_every_weight_gets_its_gradient():
    model, loss = tiny_model("siglip")
    model.float()
    batch = tiny_batch(N_ROWS)
    batch["pixel_values"] = batch["pixel_values"].float()
    forward = forward_of(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = direct(forward, [slice(0, 3), slice(3, 7)], loss)
        gradients = pop_gradients(model)
        value = backward_in_chunks(forward, N_ROWS, 2, loss)
    assert value.equal(expected)
    # A weight's gradient is added up in bfloat16 by the direct graph and in float32 here.
    assert_same(pop_gradients(model), gradients, rtol=0.05, atol=0.02)


def test_low_precision_embeddings_keep_small_gradients():
    # Gradients of 1e-9 are 0 in float16; scaled by 2 ** 16, as a gradient scaler does, they are not.
    weight = nn.Parameter(torch.ones(4, 2, dtype=torch.float16))

    class Output:
        image_embeds = text_embeds = logit_scale = logit_bias = None

    def forward(rows):
        output = Output()
        output.image_embeds = output.text_embeds = weight[rows] * 1
        output.logit_scale = torch.ones(())
        return output

    def loss(image, text, scale, bias):
        return 1e-9 * image.sum() + 0 * (text.sum() + scale)

    backward_in_chunks(forward, 4, 2, loss, backward=lambda value: (2.0**16 * value).backward())
    torch.testing.assert_close(weight.grad.float(), torch.full((4, 2), 6.5536e-5), rtol=1e-2, atol=0)


@pytest.mark.parametrize("frozen", ["logit_", "vision_model."])
def test_frozen_parts_stay_so(frozen):
    model, loss = tiny_model("siglip")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    forward = forward_of(model, tiny_batch(N_ROWS))
    direct(forward, [slice(0, N_ROWS)], loss)
    gradients = pop_gradients(model)
    assert None in gradients
    backward_in_chunks(forward, N_ROWS, 3, loss)
    assert_same(pop_gradients(model), gradients)


def test_backward_and_no_sync_are_called_once_a_chunk_and_for_all_but_the_last():
    model, loss = tiny_model("siglip")
    calls = []

    class NoSync:
        def __enter__(self):
            calls.append("enter")

        def __exit__(self, *error):
            calls.append("exit")

    forward = forward_of(model, tiny_batch(N_ROWS))

    def logged(rows):
        calls.append((rows.start, rows.stop, torch.is_grad_enabled()))
        return forward(rows)

    def backward(value):
        calls.append("backward")
        value.backward()

    backward_in_chunks(logged, N_ROWS, 2, loss, backward, NoSync)
    assert calls == [
        (0, 3, False),
        (3, 7, False),
        *("enter", (0, 3, True), "backward", "exit"),
        *((3, 7, True), "backward"),
    ]


@pytest.mark.parametrize("n_chunks", [0, 8])
def test_a_wrong_number_of_chunks_is_named(n_chunks):
    model, loss = tiny_model("siglip")
    with pytest.raises(ValueError, match=f"n_chunks={n_chunks} must lie between 1 and this rank's 7 rows"):
        backward_in_chunks(forward_of(model, tiny_batch(N_ROWS)), N_ROWS, n_chunks, loss)


def test_a_loss_must_use_the_temperature():
    model, _ = tiny_model("siglip")
    with pytest.raises(ValueError, match="loss does not depend on scale"):
        backward_in_chunks(
            forward_of(model, tiny_batch(N_ROWS)), N_ROWS, 2, lambda image, text, scale, bias: (image * text).sum()
        )
