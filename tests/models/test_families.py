# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every registered family, end to end: a tiny model of it embeds a batch, with its temperature and its views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from jest_hf import JESTDataCollator
from jest_hf.images.views import EXAMPLES
from jest_hf.models import (
    FAMILIES,
    DualEncoder,
    View,
    accept_views,
    check_view,
    embedding_width,
    expose_temperature,
    family_of,
    has_logit_bias,
    without_temperature,
)
from jest_hf.models.families import is_dual_encoder
from tests.helpers import (
    random_rows,
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip2,
    tiny_siglip2_processor,
    tiny_siglip_processor,
)


class Case(NamedTuple):
    """A tiny model of a family, and the properties that the registry must have for it."""

    model: Callable[[], Any]
    processor: Callable[[], Any]
    width: int
    loss: str
    bias: bool
    patches: bool
    reads_mask: bool
    views: tuple[str, ...]  # views that the tiny model accepts, one of each kind


SQUARE = ("patch:16", "image:8", "drop:0.5")
CASES = {
    "siglip": Case(tiny_siglip, tiny_siglip_processor, 32, "sigmoid", True, False, False, SQUARE),
    "siglip2": Case(tiny_siglip2, tiny_siglip2_processor, 32, "sigmoid", True, True, False, ("num_patches:6",)),
    "clip": Case(tiny_clip, tiny_clip_processor, 24, "softmax", False, False, True, SQUARE),
}
N_ROWS = 5


def test_every_family_has_a_row():
    assert CASES.keys() == FAMILIES.keys()
    assert all(family.model_type == name for name, family in FAMILIES.items())


@pytest.fixture(params=FAMILIES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def model(case):
    model = case.model().eval()
    expose_temperature(model)
    return model


@pytest.fixture
def reader(case, model):
    return DualEncoder(model.config, case.processor())


@pytest.fixture
def batch(case):
    return JESTDataCollator(case.processor())(random_rows(N_ROWS))


def test_the_registry_describes_the_model(case, model, reader, batch):
    family = family_of(model.config)
    assert is_dual_encoder(model) and not is_dual_encoder(model.vision_model)
    assert embedding_width(model.config) == case.width
    assert (family.loss, has_logit_bias(model), family.patches) == (case.loss, case.bias, case.patches)
    inputs = reader.inputs(batch)
    assert ("attention_mask" in inputs) == case.reads_mask
    assert inputs["pixel_values"].ndim == (3 if case.patches else 4)
    names = [name for name, _ in model.named_parameters()]
    assert set(names) - set(without_temperature(names)) == {"logit_scale"}


def test_embeddings_and_temperature_of_a_batch(case, model, reader, batch):
    scored = reader.score(model, batch, batch_size=2)
    assert scored.image.shape == scored.text.shape == (N_ROWS, case.width)
    for side in (scored.image, scored.text):
        assert side.dtype == torch.float32
        torch.testing.assert_close(side.norm(dim=1), torch.ones(N_ROWS))
    assert scored.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert scored.logit_bias == (pytest.approx(model.logit_bias.item()) if case.bias else 0)
    # The logits that the model itself computes, with nothing of ours in between.
    own = type(model).forward(model, **reader.inputs(batch)).logits_per_image
    ours = scored.logit_scale * scored.image @ scored.text.T + scored.logit_bias
    torch.testing.assert_close(ours, own, rtol=0, atol=1e-4)


def test_the_temperature_has_gradients(case, model, reader, batch):
    output = reader(model, batch)
    (output.logit_scale + (output.logit_bias if case.bias else 0)).sum().backward()
    torch.testing.assert_close(model.logit_scale.grad.sum(), model.logit_scale.exp().sum())
    if case.bias:
        assert model.logit_bias.grad.sum() == 1
    else:
        assert output.logit_bias is None


def test_views_of_its_kinds_are_accepted_and_change_the_embeddings(case, model, reader, batch):
    family = family_of(model.config)
    assert tuple(View.parse(text).kind for text in case.views) == family.views
    accept_views(model)
    full = reader.score(model, batch, batch_size=N_ROWS)
    for text in case.views:
        view = View.parse(text)
        check_view(view, model.config)
        seen = reader.score(model, batch, batch_size=2, view=view)
        assert seen.image.shape == full.image.shape and seen.image.isfinite().all()
        assert not torch.allclose(seen.image, full.image, atol=1e-3)
        torch.testing.assert_close(seen.text, full.text, rtol=0, atol=1e-5)


def test_views_of_other_kinds_are_refused(case, model):
    config, own = model.config, [View.parse(text).kind for text in case.views]
    others = {kind: text for kind, text in EXAMPLES.items() if kind not in own}
    assert others
    way_out = f"use {own[0]}" if len(own) == 1 else f"use {', '.join(own[:-1])} or {own[-1]}"
    for text in others.values():
        with pytest.raises(ValueError, match=f"view '{text}' does not suit a {config.model_type} model: {way_out}"):
            check_view(View.parse(text), config)
