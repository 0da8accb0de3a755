# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Each view equals a model built for that resolution, and one forward takes several views, also in engines."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel

from jest_hf.images.resize import resize_positions
from jest_hf.losses import sigmoid_contrastive_loss
from jest_hf.models import (
    View,
    accept_views,
    add_adapter,
    base_model,
    expose_temperature,
    resize_patch_kernel,
)
from jest_hf.models.sharding import prepare_for_fsdp2
from tests.distributed.processes import run
from tests.helpers import tiny_siglip2
from tests.models.viewed import CASES, FIXED, middle_siglip, set_up, small_clip, small_siglip, small_siglip2


# ---- One view ----


@pytest.mark.parametrize("build, text", [case for case in FIXED if "drop" not in case[1]])
def test_a_view_is_a_model_built_for_it(build, text):
    """A model built for the view's patches or images, with weights made from the learner's, has the same outputs."""
    model, encoder, batch = set_up(build)
    view, vision = View.parse(text), model.config.vision_config
    patch = view.value if view.kind == "patch" else vision.patch_size
    twin = build(vision.image_size if view.kind == "patch" else view.value, patch)
    weights = dict(model.state_dict())
    prefix = "vision_model.embeddings."
    weights[prefix + "patch_embedding.weight"] = resize_patch_kernel(
        weights[prefix + "patch_embedding.weight"], (patch, patch)
    )
    positions, grid = weights[prefix + "position_embedding.weight"], twin.config.vision_config.image_size // patch
    n_before = len(positions) % 2  # CLIP's class token
    weights[prefix + "position_embedding.weight"] = torch.cat(
        [positions[:n_before], resize_positions(positions[n_before:], (grid, grid))]
    )
    twin.load_state_dict(weights)

    inputs = encoder.inputs(batch)
    found = encoder(model, batch, view=view)
    if view.kind == "image":
        pixels = torch.nn.functional.interpolate(
            inputs["pixel_values"], size=(view.value, view.value), mode="bilinear", antialias=True
        )
        inputs["pixel_values"] = pixels
    expected = twin.eval()(**inputs)
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, rtol=0, atol=2e-6)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds)
    torch.testing.assert_close(found.logits_per_image, expected.logits_per_image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("build", [small_siglip, small_clip])
def test_dropped_patches_do_not_reach_the_encoder(build):
    model, encoder, batch = set_up(build)
    view, tower = View.parse("drop:0.5"), model.vision_model
    pixels = encoder.inputs(batch)["pixel_values"]
    kept = view.images({"pixel_values": pixels}, model.config.vision_config)["kept_patches"]
    tokens = tower.embeddings(pixels)
    n_before = tokens.shape[1] - 16
    tokens = torch.cat([tokens[:, :n_before], tokens[:, n_before:][:, kept]], dim=1)
    if build is small_clip:
        last = tower.encoder(inputs_embeds=tower.pre_layrnorm(tokens)).last_hidden_state
        expected = model.visual_projection(tower.post_layernorm(last[:, 0]))
    else:
        expected = tower.head(tower.post_layernorm(tower.encoder(inputs_embeds=tokens).last_hidden_state))
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(encoder(model, batch, view=view).image_embeds, expected, rtol=0, atol=2e-6)
    assert not tower.embeddings._forward_hooks


def test_a_naflex_view_is_the_model_on_fewer_patches():
    model, encoder, batch = set_up(small_siglip2)
    view = View.parse("num_patches:6")
    small = view.images(encoder.inputs(batch), model.config.vision_config)
    images = {name: small[name] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")}
    expected = tiny_siglip2().eval()(input_ids=batch["input_ids"], **images)
    torch.testing.assert_close(encoder(model, batch, view=view).image_embeds, expected.image_embeds)


# ---- Several views ----


def both_views(model, encoder, batch, view, n_at_view):
    """Embed the sub-batch in two forwards, for comparison with one."""
    n_rows = len(batch["example_id"])
    parts = [
        encoder(model, batch, slice(0, n_at_view), view),
        encoder(model, batch, slice(n_at_view, n_rows)),
    ]
    return (
        torch.cat([part.image_embeds for part in parts]),
        torch.cat([part.text_embeds for part in parts]),
        parts[0].logit_scale,
        parts[0].logit_bias,
    )


def loss_of(image, text, scale, bias):
    return sigmoid_contrastive_loss(image, text, scale, torch.zeros(()) if bias is None else bias)


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("build, text", CASES)
@pytest.mark.parametrize("n_at_view", [0, 2, 6])
def test_one_forward_is_as_good_as_two(build, text, n_at_view):
    model, encoder, batch = set_up(build)
    view = View.parse(text)
    outputs = []
    for way in ("one", "two"):
        model.zero_grad()
        if way == "one":
            encoder.score(model, batch, 4, view)  # scoring first leaves no trace
            model.train()
            output = encoder(model, batch, view=view, n_at_view=n_at_view)
            result = (output.image_embeds, output.text_embeds, output.logit_scale, output.logit_bias)
        elif 0 < n_at_view < 6:
            result = both_views(model, encoder, batch, view, n_at_view)
        else:
            output = encoder(model, batch, view=view if n_at_view else None)
            result = (output.image_embeds, output.text_embeds, output.logit_scale, output.logit_bias)
        loss_of(*result).backward()
        outputs.append((result[:2], gradients(model)))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=2e-6)


def test_both_views_train_the_one_kernel():
    model, encoder, batch = set_up(small_siglip)
    view, kernel = View.parse("patch:16"), model.vision_model.embeddings.patch_embedding.weight
    image = encoder(model, batch, view=view, n_at_view=3).image_embeds
    cheap, full = (torch.autograd.grad(rows[:, 0].sum(), kernel, retain_graph=True)[0] for rows in image.split(3))
    together = torch.autograd.grad(image[:, 0].sum(), kernel)[0]
    assert cheap.abs().max() > 1e-4 and full.abs().max() > 1e-4
    torch.testing.assert_close(together, cheap + full)


def test_gradient_checkpointing_changes_nothing():
    found = []
    for checkpointing in (False, True):
        model, encoder, batch = set_up(middle_siglip)
        if checkpointing:
            # transformers 5.23 has renamed it; Python 3.10 has 5.20 at most.
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        output = encoder(model.train(), batch, view=View.parse("patch:32"), n_at_view=3)
        loss_of(output.image_embeds, output.text_embeds, output.logit_scale, output.logit_bias).backward()
        found.append(gradients(model))
    torch.testing.assert_close(found[0], found[1])


def test_an_adapter_sees_views_as_its_backbone_does():
    from peft import LoraConfig

    model, encoder, batch = set_up(small_siglip)
    view = View.parse("patch:16")
    expected = encoder(model, batch, view=view, n_at_view=2).image_embeds
    learner = add_adapter(small_siglip(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    expose_temperature(base_model(learner))
    accept_views(base_model(learner))
    output = encoder(learner, batch, view=view, n_at_view=2)
    torch.testing.assert_close(output.image_embeds, expected)
    output.image_embeds[:, 0].sum().backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in learner.parameters())


# ---- The model itself ----


@pytest.mark.parametrize("build, text", CASES)
def test_the_model_stays_what_it_was(build, text, tmp_path):
    """Outputs, state and checkpoint are bit-equal, and a loaded model accepts the view again."""
    model, encoder, batch = set_up(build)
    view = View.parse(text)
    plain = build().eval()
    plain.save_pretrained(tmp_path / "before")
    full = plain(**encoder.inputs(batch))
    first = encoder.score(model, batch, 4, view)
    accept_views(model)  # a second time
    assert torch.equal(encoder.score(model, batch, 4, view).image, first.image)  # views are not made of views
    after = model(**encoder.inputs(batch))
    assert torch.equal(after.image_embeds, full.image_embeds)
    assert torch.equal(after.logits_per_text, full.logits_per_text)

    model.save_pretrained(tmp_path / "after")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("before", "after")]
    assert files[0] == files[1]
    assert (tmp_path / "before" / "config.json").read_text() == (tmp_path / "after" / "config.json").read_text()
    loaded = AutoModel.from_pretrained(tmp_path / "after")
    assert "forward" not in vars(loaded.vision_model)
    expose_temperature(loaded)
    accept_views(loaded)
    assert torch.equal(encoder.score(loaded, batch, 4, view).image, first.image)


@pytest.mark.parametrize("build, text", [(small_siglip, "patch:16"), (small_clip, "drop:0.75")])
def test_a_copy_sees_with_its_own_weights(build, text):
    model, encoder, batch = set_up(build)
    view = View.parse(text)
    expected = encoder.score(model, batch, 6, view)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.vision_model.parameters():
            weight.mul_(3.0)
    assert torch.equal(encoder.score(twin, batch, 6, view).image, expected.image)
    assert not torch.allclose(encoder.score(model, batch, 6, view).image, expected.image)


def test_a_broken_call_leaves_nothing_behind():
    model, encoder, batch = set_up(small_siglip)
    view = View.parse("drop:0.5")
    inputs = encoder.inputs(batch, view=view)
    inputs["pixel_values"][0]["kept_patches"] = torch.tensor([99])
    with pytest.raises((IndexError, RuntimeError)):
        model(**inputs)
    assert not model.vision_model.embeddings._forward_hooks


# ---- Several processes ----


def _mixed_step(text, engine):
    """Return the averaged gradients of two ranks with half of the sub-batch each, the first two rows at the view."""
    model, encoder, batch = set_up(small_siglip, n_rows=8)
    rank = torch.distributed.get_rank()
    own = {name: value[rank * 4 : rank * 4 + 4] for name, value in batch.items()}
    if engine == "ddp":
        wrapped: nn.Module = DistributedDataParallel(model)
    else:
        prepare_for_fsdp2(model)
        for module in list(model.modules()):
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module)
        wrapped = fully_shard(model)
    view = View.parse(text)
    for rows in (slice(0, 2), slice(2, 4)):  # scoring comes first, in several forwards
        encoder.score(wrapped, {name: value[rows] for name, value in own.items()}, 1, view)
    wrapped.train()
    output = encoder(wrapped, own, view=view, n_at_view=2)
    loss_of(output.image_embeds, output.text_embeds, output.logit_scale, output.logit_bias).backward()
    whole = {name: weight.grad for name, weight in model.named_parameters()}
    if engine == "fsdp2":
        whole = {name: gradient.full_tensor() for name, gradient in whole.items()}
    return {name: gradient.numpy() for name, gradient in whole.items()}


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
@pytest.mark.parametrize("text", ["patch:16", "drop:0.5"])
def test_two_processes_have_the_gradients_of_one(text, engine):
    model, encoder, batch = set_up(small_siglip, n_rows=8)
    for rows in (slice(0, 4), slice(4, 8)):  # the mean of two losses, as the ranks take it
        half = {name: value[rows] for name, value in batch.items()}
        (loss_of(*both_views(model, encoder, half, View.parse(text), 2)) / 2).backward()
    expected = {name: gradient.numpy() for name, gradient in gradients(model).items()}
    for found in run(2, _mixed_step, text, engine):
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            np.testing.assert_allclose(found[name], gradient, rtol=1e-3, atol=2e-6, err_msg=name)
