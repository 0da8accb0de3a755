# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The reader of a dual encoder gives the model the inputs of the model's own processor."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, BertConfig

from jest_hf import JESTDataCollator
from jest_hf.images.resizing import MOST_LEVELS
from jest_hf.losses import sigmoid_contrastive_loss
from jest_hf.models import (
    DualEncoder,
    View,
    accept_views,
    embedding_width,
    expose_temperature,
    family_of,
    has_logit_bias,
)
from jest_hf.models.fit import check_inputs
from tests.helpers import (
    encode,
    random_image,
    random_rows,
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip2,
    tiny_siglip2_processor,
    tiny_siglip_processor,
)


FAMILIES = {
    "siglip": (tiny_siglip, tiny_siglip_processor),
    "siglip2": (tiny_siglip2, tiny_siglip2_processor),
    "clip": (tiny_clip, tiny_clip_processor),
}


def rows_and_images(n: int = 5) -> tuple[list[dict], list[Image.Image]]:
    """Images of several shapes, as PNG, and the same as PIL images."""
    generator = np.random.default_rng(0)
    images = [random_image(*shape, generator) for shape in [(16, 16), (12, 24), (30, 9), (40, 40), (17, 21)][:n]]
    rows = [{**row, "image": encode(image)} for row, image in zip(random_rows(n), images, strict=True)]
    return rows, images


def exposed(family: str, seed: int = 0):
    make_model, make_processor = FAMILIES[family]
    model, processor = make_model(seed), make_processor()
    expose_temperature(model)
    return model, processor, DualEncoder(model.config, processor)


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_within_2_levels_of_what_the_models_own_processor_makes(family):
    model, processor, view = exposed(family)
    rows, images = rows_and_images()
    batch = JESTDataCollator(processor)(rows)
    assert batch["pixel_values"].dtype == torch.uint8
    inputs = view.inputs(batch)
    expected = processor.image_processor(images=images, return_tensors="pt")
    expected |= processor.tokenizer(
        [row["text"] for row in rows], padding="max_length", max_length=8, return_tensors="pt"
    )
    assert set(inputs) == set(expected)
    levels = MOST_LEVELS / 255 / min(processor.image_processor.image_std)
    for name, value in inputs.items():
        expected_value = expected[name]
        if family == "siglip2" and name == "pixel_values":  # patches that are masked out differ: ours are black
            mask = expected["pixel_attention_mask"].bool()
            value, expected_value = value[mask], expected_value[mask]
        most = levels + 1e-5 if name == "pixel_values" else 0
        torch.testing.assert_close(value, expected_value, rtol=0, atol=most, check_dtype=name == "pixel_values")


@pytest.mark.parametrize("change, expected", [
    ({"do_normalize": False}, lambda pixels: pixels / 255),
    ({"do_rescale": False}, lambda pixels: (pixels - 0.5) / 0.5),
    ({"do_rescale": False, "do_normalize": False}, lambda pixels: pixels),
    ({"rescale_factor": 1 / 100}, lambda pixels: (pixels / 100 - 0.5) / 0.5),
    ({"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 4.0]}, lambda pixels: torch.stack([
        (pixels[:, 0] / 255 - 0.1) / 1, (pixels[:, 1] / 255 - 0.2) / 2, (pixels[:, 2] / 255 - 0.3) / 4,
    ], dim=1)),
])  # fmt: skip
def test_normalisation_follows_the_image_processor(change, expected):
    processor = tiny_siglip_processor()
    for name, value in change.items():
        setattr(processor.image_processor, name, value)
    batch = JESTDataCollator(processor)(random_rows(3))
    found = DualEncoder(tiny_siglip().config, processor).inputs(batch)["pixel_values"]
    torch.testing.assert_close(found, expected(batch["pixel_values"].float()))


def test_patches_are_normalised_channel_by_channel():
    processor = tiny_siglip2_processor()
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.image_processor.image_std = [1.0, 2.0, 4.0]
    rows, images = rows_and_images()
    batch = JESTDataCollator(processor)(rows)
    found = DualEncoder(tiny_siglip2().config, processor).inputs(batch)["pixel_values"]
    expected = processor.image_processor(images=images, return_tensors="pt")
    mask = expected["pixel_attention_mask"].bool()
    torch.testing.assert_close(found[mask], expected["pixel_values"][mask], rtol=0, atol=MOST_LEVELS / 255 + 1e-5)


def test_pixels_that_are_floats_already_are_left_alone():
    _, processor, view = exposed("siglip")
    batch = JESTDataCollator(processor)(random_rows(2))
    batch["pixel_values"] = torch.randn(2, 3, 16, 16)
    assert torch.equal(view.inputs(batch)["pixel_values"], batch["pixel_values"])


def test_only_clip_gets_an_attention_mask():
    """A SigLIP whose tokenizer makes a mask: the model was trained without one."""
    batch = JESTDataCollator(tiny_clip_processor())(random_rows(3))
    assert "attention_mask" in batch
    for family, has_mask in (("siglip", False), ("clip", True)):
        model, processor, view = exposed(family)
        assert ("attention_mask" in view.inputs(batch)) == has_mask, family


def test_a_reference_reads_its_own_keys_and_else_the_learners():
    model, processor, _ = exposed("clip")
    view = DualEncoder(model.config, processor, prefix="ref_")
    shared = JESTDataCollator(processor)(random_rows(3))
    assert torch.equal(view.inputs(shared)["input_ids"], shared["input_ids"])
    assert torch.equal(view.inputs(shared)["attention_mask"], shared["attention_mask"])

    own_text = {**shared, "ref_input_ids": shared["input_ids"] + 1}
    inputs = view.inputs(own_text)
    assert torch.equal(inputs["input_ids"], shared["input_ids"] + 1)
    assert "attention_mask" not in inputs  # the learner's mask belongs to the learner's tokens
    assert torch.equal(DualEncoder(model.config, processor).inputs(own_text)["input_ids"], shared["input_ids"])

    own_pixels = {**shared, "ref_pixel_values": torch.zeros(3, 3, 16, 16)}
    assert torch.equal(view.inputs(own_pixels)["pixel_values"], torch.zeros(3, 3, 16, 16))
    assert torch.equal(view.inputs(own_pixels)["attention_mask"], shared["attention_mask"])


def test_a_fixed_size_reference_takes_no_patch_mask_from_a_naflex_learner():
    model, processor, _ = exposed("siglip")
    batch = JESTDataCollator(tiny_siglip2_processor(), processor)(random_rows(3))
    assert "pixel_attention_mask" in batch and "ref_pixel_values" in batch
    view = DualEncoder(model.config, processor, prefix="ref_")
    assert set(view.inputs(batch)) == {"pixel_values", "input_ids"}
    assert view.inputs(batch)["pixel_values"].shape == (3, 3, 16, 16)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3, 5, 99])
def test_embed_is_one_forward_whatever_the_batch_size(family, batch_size):
    model, processor, view = exposed(family)
    rows, _ = rows_and_images()
    batch = JESTDataCollator(processor)(rows)
    model.train()
    found = view.score(model, batch, batch_size)
    assert not model.training and not found.image.requires_grad
    output = model(**view.inputs(batch))
    torch.testing.assert_close(found.image, output.image_embeds)
    torch.testing.assert_close(found.text, output.text_embeds)
    assert found.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert found.image.shape == (5, embedding_width(model.config))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_temperature_in_the_output_is_the_one_in_the_logits(family):
    model, processor, view = exposed(family)
    expose_temperature(model)  # twice
    assert len(model._forward_hooks) == 1
    output = view(model, JESTDataCollator(processor)(random_rows(4)))
    logits = output.logit_scale * output.image_embeds @ output.text_embeds.T
    if family == "clip":
        assert output.logit_bias is None and not has_logit_bias(model)
    else:
        assert has_logit_bias(model)
        logits = logits + output.logit_bias
    torch.testing.assert_close(output.logits_per_image, logits)


def test_gradients_reach_the_temperature_as_through_the_parameters():
    model, processor, view = exposed("siglip")
    batch = JESTDataCollator(processor)(random_rows(4))
    output = view(model, batch)
    through_output = torch.autograd.grad(
        sigmoid_contrastive_loss(output.image_embeds, output.text_embeds, output.logit_scale, output.logit_bias),
        [model.logit_scale, model.logit_bias],
    )
    output = view(model, batch)
    through_parameters = torch.autograd.grad(
        sigmoid_contrastive_loss(output.image_embeds, output.text_embeds, model.logit_scale.exp(), model.logit_bias),
        [model.logit_scale, model.logit_bias],
    )
    for found, expected in zip(through_output, through_parameters, strict=True):
        assert expected.abs() > 0
        torch.testing.assert_close(found, expected)


def test_the_output_does_not_share_memory_with_the_bias():
    """Engines free a parameter after the forward; the output must stay valid."""
    model, processor, view = exposed("siglip")
    output = view(model, JESTDataCollator(processor)(random_rows(2)))
    with torch.no_grad():
        model.logit_bias.fill_(123.0)
    assert output.logit_bias.item() == -10


def test_an_exposed_model_is_copied_and_saved_like_any_other(tmp_path):
    model, processor, view = exposed("siglip")
    batch = JESTDataCollator(processor)(random_rows(3))
    expected = view.score(model, batch, 3)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.logit_scale.fill_(math.log(3.0))
    found = view.score(twin, batch, 3)
    assert torch.equal(found.image, expected.image)
    assert found.logit_scale == pytest.approx(3.0)  # its own, not the original's
    expose_temperature(twin)
    assert len(twin._forward_hooks) == 1

    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert not loaded._forward_hooks
    assert loaded.config.to_diff_dict().keys() == model.config.to_diff_dict().keys()
    expose_temperature(loaded)
    assert torch.equal(view.score(loaded, batch, 3).text, expected.text)


VIEWS = {"siglip": "image:8", "clip": "image:8", "siglip2": "num_patches:4"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [2, 99])
def test_embed_at_a_view_is_one_forward_too(family, batch_size):
    model, processor, encoder = exposed(family)
    accept_views(model)
    batch, view = JESTDataCollator(processor)(rows_and_images()[0]), View.parse(VIEWS[family])
    found = encoder.score(model, batch, batch_size, view)
    output = encoder(model, batch, view=view)
    torch.testing.assert_close(found.image, output.image_embeds)
    assert not torch.allclose(found.image, encoder.score(model, batch, 5).image, atol=1e-3)
    torch.testing.assert_close(found.text, encoder.score(model, batch, 5).text)


@pytest.mark.parametrize("rows", [slice(None), slice(0, 2), slice(1, 4), slice(3, 5), slice(3, 99)])
@pytest.mark.parametrize("n_at_view", [None, 0, 3, 5])
def test_the_first_rows_of_the_batch_are_at_the_view(rows, n_at_view):
    """For any slice, as gradient caching reads the sub-batch in chunks."""
    model, processor, encoder = exposed("siglip")
    accept_views(model)
    batch, view = JESTDataCollator(processor)(rows_and_images()[0]), View.parse("image:8")
    found = encoder(model, batch, rows, view, n_at_view)
    full, cheap = encoder.score(model, batch, 5), encoder.score(model, batch, 5, view)
    at_view = torch.arange(5) < (5 if n_at_view is None else n_at_view)
    torch.testing.assert_close(found.image_embeds, torch.where(at_view[:, None], cheap.image, full.image)[rows])
    torch.testing.assert_close(found.text_embeds, full.text[rows])


def test_images_at_the_view_are_read_where_the_batch_has_them():
    model, processor, _ = exposed("siglip")
    batch, view = JESTDataCollator(processor)(random_rows(3)), View.parse("image:8")
    batch["view_pixel_values"] = torch.full((3, 3, 8, 8), 255, dtype=torch.uint8)
    cheap, full = DualEncoder(model.config, processor).inputs(batch, view=view, n_at_view=2)["pixel_values"]
    torch.testing.assert_close(cheap["pixel_values"], torch.ones(2, 3, 8, 8))  # normalised
    assert full["pixel_values"].shape == (1, 3, 16, 16)
    assert set(DualEncoder(model.config, processor).inputs(batch)) == {"pixel_values", "input_ids"}
    scored = {name: value for name, value in batch.items() if name != "pixel_values"}  # full images come later
    assert len(DualEncoder(model.config, processor).inputs(scored, slice(1, 3), view)["pixel_values"]) == 1

    reference = DualEncoder(model.config, processor, "ref_")  # the view of another model may be another
    (made,) = reference.inputs(batch, view=view)["pixel_values"]
    assert made["pixel_values"].shape == (3, 3, 8, 8) and made["pixel_values"].std() > 0
    batch["view_ref_pixel_values"] = torch.zeros(3, 3, 8, 8)
    (own,) = reference.inputs(batch, view=view)["pixel_values"]
    assert torch.equal(own["pixel_values"], torch.zeros(3, 3, 8, 8))


def test_models_that_are_no_dual_encoder():
    with pytest.raises(ValueError, match="model_type='bert' is not a supported dual encoder; use one of siglip"):
        family_of(BertConfig())


def test_the_multiplier_of_clip_has_a_limit():
    """OpenAI's checkpoints lie at the limit: the multiplier must be able to fall, and not to rise."""
    for family, start, sign, moves in [
        ("clip", math.log(100) + 1e-4, -1, False),
        ("clip", math.log(100) + 1e-4, 1, True),
        ("clip", math.log(20), -1, True),
        ("siglip", math.log(200), -1, True),
    ]:
        model, _, reader = exposed(family)
        with torch.no_grad():
            model.logit_scale.fill_(start)
        batch = JESTDataCollator(FAMILIES[family][1]())(random_rows(2))
        scale = reader(model, batch).logit_scale
        assert scale.item() == pytest.approx(min(math.exp(start), 100.0) if family == "clip" else math.exp(start))
        (sign * scale).backward()
        assert (model.logit_scale.grad != 0).item() is moves


def test_shorter_captions_than_a_model_was_made_for(caplog):
    for family, makes_a_difference in (("siglip", True), ("siglip2", True), ("clip", False)):
        model, processor, _ = exposed(family)
        inputs = JESTDataCollator(processor, max_length=5)(random_rows(2))
        caplog.clear()
        check_inputs(inputs, model.config, "learner")
        assert ("was made for 8" in caplog.text) is makes_a_difference
        if makes_a_difference:
            with pytest.raises(ValueError, match="padded to 5 tokens, and the reference was made for 8.*max_length=8"):
                check_inputs(inputs, model.config, "reference")
        else:
            check_inputs(inputs, model.config, "reference")
