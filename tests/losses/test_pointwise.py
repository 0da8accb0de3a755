# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of single examples against loops over them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from jest_hf.losses.pointwise import IGNORED, mean_over_ranks, per_example_losses


def literal(logits, labels, label_smoothing=0.0, causal=False):
    """Compute the loss of each label by itself, in plain Python floats."""
    losses = []
    for scores, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        if logits.ndim == 2:
            scores, targets = [scores], [targets]
        if causal:
            scores, targets = scores[:-1], targets[1:]
        terms = []
        for score, target in zip(scores, targets, strict=True):
            if target == IGNORED:
                continue
            top = max(score)
            log_total = top + math.log(sum(math.exp(s - top) for s in score))
            share = label_smoothing / len(score)
            goal = [share + (1 - label_smoothing) * (c == target) for c in range(len(score))]
            terms.append(sum(g * (log_total - s) for g, s in zip(goal, score, strict=True)))
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return torch.tensor(losses, dtype=torch.float64)


def example(seed, n, length, n_classes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = [n] if length is None else [n, length]
    logits = 5 * torch.randn(*shape, n_classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(n_classes, shape, generator=generator)
    return logits.to(dtype), labels.masked_fill(torch.rand(shape, generator=generator) < 0.3, IGNORED)


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 6),
    length=st.one_of(st.none(), st.integers(1, 5)),
    n_classes=st.integers(2, 7),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    causal=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_losses_are_those_of_each_label_by_itself(seed, n, length, n_classes, label_smoothing, causal):
    causal = causal and length is not None
    logits, labels = example(seed, n, length, n_classes)
    losses = per_example_losses(logits, labels, label_smoothing=label_smoothing, causal=causal)
    torch.testing.assert_close(losses, literal(logits, labels, label_smoothing, causal), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("length", "causal"), [(None, False), (4, False), (4, True)])
def test_gradients_are_those_of_each_example_by_itself(length, causal):
    logits, labels = example(1, 5, length, 3)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)

    def weighted(x):
        return weights @ per_example_losses(x, labels, label_smoothing=0.1, causal=causal)

    assert torch.autograd.gradcheck(weighted, logits.requires_grad_())


def test_low_precision_is_left_at_the_logits_also_under_autocast():
    logits, labels = example(2, 6, 5, 7, torch.bfloat16)
    expected = literal(logits, labels, 0.1, causal=True).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = per_example_losses(logits, labels, label_smoothing=0.1, causal=True)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)


def test_a_language_model_says_the_same_of_one_text_at_a_time():
    config = LlamaConfig(
        vocab_size=14, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    model, ids = LlamaForCausalLM(config).eval(), torch.randint(14, (3, 6))
    labels = ids.clone()
    labels[1, 4:] = IGNORED
    with torch.no_grad():
        losses = per_example_losses(model(ids).logits, labels, causal=True)
        own = [model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss for i in range(3)]
    torch.testing.assert_close(losses, torch.stack(own))


def test_the_training_loss_is_the_mean_over_examples_and_not_over_tokens():
    logits, labels = example(3, 4, 6, 5)
    labels[0, 1:] = IGNORED
    losses = per_example_losses(logits, labels)
    assert mean_over_ranks(losses).item() == pytest.approx(literal(logits, labels).mean().item())
    over_tokens = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert abs(mean_over_ranks(losses) - over_tokens) > 0.01


def test_the_mean_has_the_gradient_of_a_mean():
    losses = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    (3 * mean_over_ranks(losses)).backward()
    assert losses.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)), r"\[2, 3\] and \[3\]"),
        ((torch.zeros(2), torch.zeros(2, dtype=torch.int64)), r"\[2\] and \[2\]"),
        ((torch.zeros(2, 4, 3), torch.zeros(2, dtype=torch.int64)), r"\[2, 4, 3\] and \[2\]"),
        ((torch.zeros(2, 3), torch.zeros(2)), "int64, but are torch.float32"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        per_example_losses(*arguments)


def test_wrong_options_are_refused():
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="causal=True needs logits of tokens"):
        per_example_losses(logits, labels, causal=True)
    for label_smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"label_smoothing={label_smoothing}"):
            per_example_losses(logits, labels, label_smoothing=label_smoothing)
