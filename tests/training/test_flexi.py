# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Flexi-JEST in the trainer: scored at a cheap view, trained at both, saved as ever."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from jest_hf.losses import sigmoid_contrastive_loss
from jest_hf.models import View
from jest_hf.report import read_selections
from jest_hf.training.step import SubBatch
from tests.helpers import (
    random_rows,
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip2,
    tiny_siglip2_processor,
)
from tests.trainers import logged, make_trainer


FAMILIES = {
    "siglip": ({}, "patch:16"),
    "clip": ({"model": tiny_clip, "reference": tiny_clip, "processor": tiny_clip_processor}, "image:8"),
    "siglip2": (
        {"model": tiny_siglip2, "reference": tiny_siglip2, "processor": tiny_siglip2_processor},
        "num_patches:6",
    ),
}


@pytest.fixture(params=list(FAMILIES))
def family(request):
    made, view = FAMILIES[request.param]
    seeds = {"model": 0, "reference": 1}
    return {name: make(seeds[name]) if name in seeds else make() for name, make in made.items()}, view


def spy_on_forwards(trainer):
    """Number of images at the view and in full, of each forward of the learner: (scoring, training)."""
    scored, trained = [], []
    inputs = trainer.learner_view.inputs

    def spy(batch, rows=slice(None), view=None, n_at_view=None):
        n_rows = len(range(*rows.indices(len(batch["input_ids"]))))
        at_view = 0 if view is None else n_rows if n_at_view is None else n_at_view
        (trained if torch.is_grad_enabled() else scored).append((at_view, n_rows - at_view))
        return inputs(batch, rows, view, n_at_view)

    trainer.learner_view.inputs = spy
    return scored, trained


def test_scoring_is_cheap_and_training_takes_both(tmp_path, family):
    models, view = family
    trainer = make_trainer(tmp_path, scoring_view=view, low_resolution_fraction=0.25, record_selection=True, **models)
    scored, trained = spy_on_forwards(trainer)
    trainer.train()
    assert scored == [(8, 0)] * 12 and trained == [(2, 6)] * 3
    assert logged(trainer, "loss")
    assert trainer.step_flops.training_saved > 0
    assert len(read_selections(tmp_path / "selections.parquet")) == 24


def test_the_loss_and_gradients_are_those_of_one_batch_at_two_resolutions(tmp_path):
    trainer = make_trainer(tmp_path, scoring_view="image:8", low_resolution_fraction=0.5)
    model, read = trainer.model, trainer.learner_view
    batch = trainer.data_collator(random_rows(8))
    trainer.compute_loss(model, batch).backward()
    mixed = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    low = read(model, batch, slice(0, 4), View.parse("image:8"))
    full = read(model, batch, slice(4, 8))
    image, text = (torch.cat([getattr(low, name), getattr(full, name)]) for name in ("image_embeds", "text_embeds"))
    sigmoid_contrastive_loss(image, text, full.logit_scale, full.logit_bias).backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(mixed[name], value.grad, atol=1e-5, rtol=1e-4)


def test_which_examples_are_trained_at_the_view_is_random_and_repeatable(tmp_path):
    trainer = make_trainer(tmp_path, scoring_view="image:8")
    batch = {"example_id": torch.arange(8), "input_ids": torch.arange(16).view(8, 2)}

    def shuffled(step):
        return trainer.parts.update.prepare(trainer.model, SubBatch(batch, torch.arange(8), 0, 0, True), step).rows

    first = shuffled(1)
    assert sorted(first["example_id"].tolist()) == list(range(8)) != first["example_id"].tolist()
    assert torch.equal(first["input_ids"], batch["input_ids"][first["example_id"]])
    assert torch.equal(shuffled(1)["example_id"], first["example_id"])
    assert not torch.equal(shuffled(2)["example_id"], first["example_id"])


def test_a_resumed_run_selects_and_trains_the_same(tmp_path):
    settings = {"scoring_view": "patch:16", "record_selection": True, "max_steps": 6, "lr_scheduler_type": "constant"}
    saving = {**settings, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(tmp_path / "whole", **saving)
    whole.train()
    make_trainer(tmp_path / "cut", **{**saving, "max_steps": 3}).train()
    resumed = make_trainer(tmp_path / "cut", **saving)
    resumed.train(resume_from_checkpoint=True)
    tables = [read_selections(tmp_path / name / "selections.parquet") for name in ("whole", "cut")]
    assert tables[0].equals(tables[1])
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_with_gradient_caching_the_run_is_the_same(tmp_path):
    losses = []
    for changes in ({}, {"gradient_cache_chunk_size": 3}):
        trainer = make_trainer(tmp_path, scoring_view="image:8", **changes)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_fraction_of_zero_is_training_in_full(tmp_path):
    """Low-resolution scoring alone: the batches are the selection's, and trained on at full resolution."""
    trainer = make_trainer(tmp_path, scoring_view="image:8", low_resolution_fraction=0.0)
    _, trained = spy_on_forwards(trainer)
    trainer.train()
    assert trained == [(0, 8)] * 3


def test_what_is_saved_is_plain_and_evaluated_in_full(tmp_path):
    options = {"eval_dataset": random_rows(12, seed=3)}
    trainer = make_trainer(tmp_path, scoring_view="patch:16", eval_at_view=True, options=options)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] != metrics["eval_at_view_loss"]
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert loaded.config.vision_config.patch_size == tiny_siglip(0).config.vision_config.patch_size
    plain = make_trainer(tmp_path / "plain", model=loaded, options=options)
    assert plain.evaluate()["eval_loss"] == pytest.approx(metrics["eval_loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scoring_view": "patch"}, "view 'patch' cannot be read"),
        ({"scoring_view": "patch:12"}, "view 'patch:12': choose patches larger than the model's"),
        ({"scoring_view": "image:12"}, "view 'image:12'"),
        ({"scoring_view": "num_patches:4"}, "does not suit a siglip model"),
        ({"scoring_view": "patch:16", "low_resolution_fraction": 1.5}, "low_resolution_fraction=1.5 must be in"),
        ({"eval_at_view": True}, "eval_at_view=True needs a scoring_view"),
    ],
)
def test_a_view_that_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **changes)
