# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer on models whose examples stand alone: classifiers of images and texts, language models."""

from __future__ import annotations

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

from jest_hf import JESTTrainer
from jest_hf.report import read_selections
from tests.objectives.labelled import KINDS, image_rows, tiny_vit, tiny_vit_processor
from tests.trainers import arguments, logged


AUTO = {
    "vit": AutoModelForImageClassification,
    "bert": AutoModelForSequenceClassification,
    "llama": AutoModelForCausalLM,
}


def labelled_trainer(folder, kind="vit", *, reference_seed=1, rows=None, options=None, **changes) -> JESTTrainer:
    build, make_processor, make_rows, _ = KINDS[kind]
    settings = {"selection": "independent", "record_selection": True, **changes}
    ref_model = build(reference_seed) if settings.get("reference") != "online" else None
    return JESTTrainer(
        model=build(0),
        ref_model=ref_model,
        args=arguments(folder, **settings),
        train_dataset=rows or make_rows(80),
        eval_dataset=make_rows(11, seed=1),
        processing_class=make_processor(),
        **(options or {}),
    )


def trained_ids(trainer) -> list[int]:
    return read_selections(trainer.ledger.path)["example_id"].to_pylist()


def weights(model) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_any_model_with_labels_trains_on_what_is_selected_and_saves_as_itself(tmp_path, kind):
    trainer = labelled_trainer(tmp_path, kind)
    before = weights(trainer.model).clone()
    trainer.train()
    assert trainer.objective.name == KINDS[kind][3]
    assert trainer.statistics.seen == 3 * 32 and trainer.statistics.trained == 24
    assert not torch.equal(weights(trainer.model), before)
    metrics = trainer.evaluate()
    assert {"eval_loss", "eval_perplexity" if kind == "llama" else "eval_accuracy"} <= metrics.keys()
    trainer.save_model()
    assert torch.equal(weights(AUTO[kind].from_pretrained(tmp_path)), weights(trainer.model))


def test_top_k_takes_the_largest_reducible_losses(tmp_path):
    rows = image_rows(32)
    trainer = labelled_trainer(tmp_path, rows=rows, preset="rho_loss", selection=None, filter_ratio=0.75, max_steps=1)
    assert trainer.args.selection == "top_k" and trainer.args.cache_reference
    batch = trainer.data_collator([{**row, "example_id": i} for i, row in enumerate(rows)])
    learner, reference = (trainer.learner_view.score(model, batch, 32).losses for model in (tiny_vit(0), tiny_vit(1)))
    trainer.train()
    assert set(trained_ids(trainer)) == set((learner - reference).topk(8).indices.tolist())


def test_cached_irreducible_losses_select_as_the_live_model_does(tmp_path):
    live, cached = (labelled_trainer(tmp_path / str(cache), cache_reference=cache) for cache in (False, True))
    for trainer in (live, cached):
        trainer.train()
    assert trained_ids(live) == trained_ids(cached)
    assert cached.ref_model is None and (tmp_path / "True" / "irreducible_losses.safetensors").exists()
    assert cached.run_flops.reference == 80 / 96 * live.run_flops.reference


@pytest.mark.parametrize("changes", [{"preset": "class_act", "filter_ratio": 0.75}, {"reference": "online"}])
def test_models_beside_a_classifier_resume_bit_equal(tmp_path, changes):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **changes}
    whole = labelled_trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = labelled_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(weights(resumed.model), weights(whole.model))
    (one,), (other,) = resumed.online_models, whole.online_models
    assert torch.equal(weights(one.model), weights(other.model))


def test_rows_without_a_label_and_broken_images_are_skipped_and_counted(tmp_path):
    rows = image_rows(80)
    rows[3]["image"], rows[7]["label"], rows[11]["label"] = b"no image", None, -1
    trainer = labelled_trainer(tmp_path, rows=rows, max_steps=2, filter_ratio=0.8, num_train_epochs=1)
    trainer.train()
    assert trainer.statistics.skipped == 3 and not {3, 7, 11} & set(trained_ids(trainer))


def test_selected_losses_are_logged(tmp_path):
    trainer = labelled_trainer(tmp_path, selection="top_k", max_steps=2)
    trainer.train()
    selected, rejected = (logged(trainer, f"{part}/learnability") for part in ("selected", "rejected"))
    assert all(a > b for a, b in zip(selected, rejected, strict=True))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"selection": "joint"}, "selection='joint' needs examples that make pairs"),
        ({"scoring_view": "patch:16"}, "scoring_view='patch:16' is for image-text pairs"),
        ({"gradient_cache_chunk_size": 2}, "gradient_cache_chunk_size=2 is for image-text pairs"),
        ({"distillation_weight": 1.0}, "distillation_weight=1.0 is for image-text pairs"),
        ({"pair_score": "similarity"}, "pair_score='similarity' is for image-text pairs"),
        ({"loss": "softmax"}, "loss='softmax' is for image-text pairs"),
        ({"reference_cache": "cache"}, "reference_cache='cache' is for image-text pairs"),
    ],
)
def test_options_for_pairs_are_refused(tmp_path, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        labelled_trainer(tmp_path, **changes)


def test_labels_that_the_model_does_not_have_are_refused_at_construction(tmp_path):
    rows = image_rows(80)
    rows[40]["label"] = 5
    with pytest.raises(ValueError, match="label"):
        labelled_trainer(tmp_path, rows=datasets.Dataset.from_list(rows))


def test_the_best_model_is_loaded_whatever_its_weights_are_called(tmp_path):
    settings = {"max_steps": 4, "save_steps": 1, "eval_steps": 1, "eval_strategy": "steps", "save_strategy": "steps"}
    trainer = labelled_trainer(tmp_path, **settings, load_best_model_at_end=True, metric_for_best_model="loss",
                               greater_is_better=False, learning_rate=1e-2)  # fmt: skip
    trainer.train()
    best = AutoModelForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    assert torch.equal(weights(trainer.model), weights(best))
    losses = logged(trainer, "eval_loss")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses)) and min(losses) != losses[-1]


def test_a_smaller_proxy_reads_its_own_images(tmp_path):
    proxy = tiny_vit(4, size=8)
    options = {"proxy_model": proxy, "ref_processing_class": tiny_vit_processor(8)}
    build, make_processor, make_rows, _ = KINDS["vit"]
    trainer = JESTTrainer(
        model=build(0),
        ref_model=tiny_vit(5, size=8),
        args=arguments(tmp_path, selection="independent", scoring="proxy"),
        train_dataset=make_rows(80),
        processing_class=make_processor(),
        **options,
    )
    before = weights(proxy).clone()
    trainer.train()
    assert not torch.equal(weights(proxy), before)
    assert trainer.run_flops.scoring < trainer.run_flops.training
