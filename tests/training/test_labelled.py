# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer on models whose examples stand alone: classifiers of images and texts, language models."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

from jest_hf import JESTTrainer
from jest_hf.report import read_selections
from tests.helpers import COLOURS
from tests.objectives.labelled import KINDS, image_rows, text_rows, tiny_vit, tiny_vit_processor
from tests.trainers import arguments, logged, make_trainer


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
        processing_class=make_processor(),
        **{"eval_dataset": make_rows(11, seed=1), **(options or {})},
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
    assert trainer.learning_objective.name == KINDS[kind][3]
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
    ("changes", "message"),
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
def test_options_for_pairs_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        labelled_trainer(tmp_path, **changes)


def test_labels_that_the_model_does_not_have_are_refused_at_construction(tmp_path):
    rows = image_rows(80)
    rows[40]["label"] = 5
    with pytest.raises(ValueError, match="label"):
        labelled_trainer(tmp_path, rows=datasets.Dataset.from_list(rows))


def class_rows(names) -> datasets.Dataset:
    """Rows of texts whose classes have the numbers that they have in `names`."""
    rows = [{**row, "label": names.index(COLOURS[row["label"]])} for row in text_rows(12)]
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def test_labels_of_evaluation_data_are_looked_at_too(tmp_path):
    good, swapped = class_rows(COLOURS), class_rows(COLOURS[::-1])
    trainer = labelled_trainer(tmp_path, "bert", options={"eval_dataset": {"good": good}})
    assert trainer.evaluate()["eval_good_examples_skipped"] == 0
    for wrong in (swapped, {"good": good, "swapped": swapped}):
        with pytest.raises(ValueError, match="class 'black' has the number 0 in the data set and 4 in the model"):
            labelled_trainer(tmp_path, "bert", options={"eval_dataset": wrong})
        with pytest.raises(ValueError, match="class 'black' has the number 0"):
            trainer.evaluate(wrong)
    for use in (trainer.get_eval_dataloader, trainer.predict):
        with pytest.raises(ValueError, match="class 'black' has the number 0"):
            use(swapped)


def test_predictions_have_a_row_for_each_of_the_data_set(tmp_path):
    rows = image_rows(11, seed=1)
    trainer = labelled_trainer(tmp_path, per_device_eval_batch_size=4)
    whole = trainer.predict(rows)
    assert isinstance(whole.predictions, np.ndarray) and whole.predictions.shape == (11, 5)
    assert whole.label_ids.tolist() == [row["label"] for row in rows]
    assert whole.metrics["test_accuracy"] == (whole.predictions.argmax(-1) == whole.label_ids).mean()

    spoilt = [dict(row) for row in rows]
    spoilt[2]["label"], spoilt[5]["image"] = None, b"no image"
    part = trainer.predict(spoilt)
    others = np.delete(np.arange(11), 5)
    assert np.isnan(part.predictions[5]).all() and np.array_equal(part.predictions[others], whole.predictions[others])
    assert part.label_ids[[2, 5]].tolist() == [-100, -100] and part.metrics["test_examples_skipped"] == 1
    counted = np.delete(np.arange(11), [2, 5])
    right = whole.predictions[counted].argmax(-1) == whole.label_ids[counted]
    assert part.metrics["test_accuracy"] == pytest.approx(right.mean())

    unlabelled = trainer.predict([{"image": row["image"]} for row in rows])
    assert unlabelled.label_ids is None and np.array_equal(unlabelled.predictions, whole.predictions)
    assert "test_accuracy" not in unlabelled.metrics and unlabelled.metrics["test_examples_skipped"] == 0


def test_compute_metrics_is_called_with_the_logits_and_labels_of_whole_rows(tmp_path):
    seen = []

    def compute_metrics(given):
        seen.append(given)
        return {"mean_of_labels": np.float64(given.label_ids.mean()), "eval_rows": len(given.predictions)}

    rows = text_rows(11, seed=1)
    rows[4]["label"] = None
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "mean_of_labels"}
    options = {"compute_metrics": compute_metrics, "eval_dataset": rows}
    trainer = labelled_trainer(tmp_path, "bert", options=options, max_steps=2, **settings, **best)
    trainer.train()
    metrics = trainer.evaluate()
    labels = [row["label"] for row in rows if row["label"] is not None]
    assert len(seen) == 3 and seen[-1].label_ids.tolist() == labels and seen[-1].predictions.shape == (10, 5)
    assert (seen[-1].predictions.argmax(-1) == labels).mean() == metrics["eval_accuracy"]
    assert metrics["eval_mean_of_labels"] == np.mean(labels) and type(metrics["eval_mean_of_labels"]) is float
    assert metrics["eval_rows"] == 10 and trainer.state.best_metric == np.mean(labels)
    trainer.predict([{"text": row["text"]} for row in rows])
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bert", {"compute_loss_func": print}, "compute_loss_func would not be called: .*label_smoothing_factor"),
        (
            "bert",
            {"preprocess_logits_for_metrics": print},
            "preprocess_logits_for_metrics would not .*compute_metrics",
        ),
        ("llama", {"compute_metrics": print}, "compute_metrics would need the logits of every token"),
    ],
)
def test_functions_that_would_not_be_called_are_refused(tmp_path, kind, options, message):
    with pytest.raises(ValueError, match=message):
        labelled_trainer(tmp_path, kind, options=options)


def test_pairs_and_batches_have_no_compute_metrics(tmp_path):
    with pytest.raises(ValueError, match="compute_metrics needs labels, .*recalls"):
        make_trainer(tmp_path, options={"compute_metrics": print})
    with pytest.raises(ValueError, match="compute_loss_func would not be called"):
        make_trainer(tmp_path, options={"compute_loss_func": print})
    with pytest.raises(ValueError, match="batch_eval_metrics=True is not supported"):
        labelled_trainer(tmp_path, batch_eval_metrics=True)


def test_a_model_without_a_head_is_refused_at_construction(tmp_path):
    with pytest.raises(ValueError, match=r"the learner is a LlamaForCausalLM, .* \[1, 8, 14\] .* needs \[1, 2\]"):
        labelled_trainer(
            tmp_path, "llama", rows=[{**row, "label": 0} for row in text_rows(80)], objective="classification"
        )


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
