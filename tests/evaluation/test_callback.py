# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Zero-shot classification at each evaluation, against a literal implementation with the models' processors."""

from __future__ import annotations

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.evaluation import ZeroShotCallback
from tests.helpers import (
    COLOURS,
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


TEMPLATES = ("a {}", "a {} and", "{}")
FAMILIES = {
    "siglip": (tiny_siglip, tiny_siglip_processor),
    "siglip2": (tiny_siglip2, tiny_siglip2_processor),
    "clip": (tiny_clip, tiny_clip_processor),
}


def labelled_rows(n: int, broken: tuple[int, ...] = ()) -> list[dict]:
    """Random images with a random label and no caption."""
    generator = np.random.default_rng(7)
    rows = []
    for index in range(n):
        image = encode(random_image(16, 16, generator))
        rows.append({"image": b"no image" if index in broken else image, "label": int(generator.integers(5))})
    return rows


def make_trainer(folder, family: str = "siglip", **changes) -> JESTTrainer:
    make_model, make_processor = FAMILIES[family]
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 5,
        "selection": "uniform",
        "max_steps": 4,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return JESTTrainer(
        model=make_model(3),
        args=JESTConfig(**{**settings, **changes}),
        train_dataset=random_rows(40),
        eval_dataset=random_rows(8, seed=1),
        processing_class=make_processor(),
    )


def literal_accuracies(model, processor, rows: list[dict]) -> dict[str, float]:
    """Classify one image and one prompt at a time, with the processor of transformers."""
    model.eval()

    def outputs(image: Image.Image, prompt: str):
        # Each part by itself: called as one, a Siglip2Processor overrules its image processor's patch size.
        inputs = processor.image_processor(images=image, return_tensors="pt")
        inputs |= processor.tokenizer([prompt], padding="max_length", max_length=8, return_tensors="pt")
        with torch.no_grad():
            return model(**inputs)

    def unit(vector):
        return vector / vector.norm()

    some_image = Image.new("RGB", (16, 16))
    classes = []
    for name in COLOURS:
        prompts = [unit(outputs(some_image, template.format(name)).text_embeds[0]) for template in TEMPLATES]
        classes.append(unit(sum(prompts) / len(prompts)))
    first, hits, of_class = [], [], {}
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]))
        image = unit(outputs(image, "a").image_embeds[0])
        scores = [float(image @ one) for one in classes]
        rank = sum(score > scores[row["label"]] for score in scores)
        first.append(rank < 1)
        hits.append(rank < 5)
        of_class.setdefault(row["label"], []).append(rank < 1)
    return {
        "eval_zero_shot_accuracy@1": np.mean(first),
        "eval_zero_shot_accuracy@5": np.mean(hits),
        "eval_zero_shot_mean_per_class_accuracy": np.mean([np.mean(right) for right in of_class.values()]),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_figures_are_those_of_a_literal_classification(tmp_path, family):
    rows = labelled_rows(23, broken=(4, 20))
    trainer = make_trainer(tmp_path, family)
    trainer.add_callback(ZeroShotCallback(trainer, rows, COLOURS, TEMPLATES))
    metrics = trainer.evaluate()
    good = [row for index, row in enumerate(rows) if index not in (4, 20)]
    expected = literal_accuracies(FAMILIES[family][0](3), FAMILIES[family][1](), good)
    assert 0 < expected["eval_zero_shot_accuracy@1"] < 1
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value), name
    assert metrics["eval_zero_shot_examples_skipped"] == 2


def test_accuracy_at_5_counts_the_five_best_of_many_classes(tmp_path):
    """Ten classes, the last five with the names of the first five, so that every score occurs twice."""
    trainer = make_trainer(tmp_path)
    callback = ZeroShotCallback(trainer, labelled_rows(30), COLOURS + COLOURS, TEMPLATES)
    trainer.model.train()
    found = callback.compute()
    assert not trainer.model.training
    assert found["accuracy@1"] == 0  # ties count as misses
    assert 0 < found["accuracy@5"] < 1


def test_each_evaluation_logs_the_new_metrics_once_and_training_goes_on(tmp_path):
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=2)
    rows = datasets.Dataset.from_list(labelled_rows(6)).cast_column("image", datasets.Image())
    trainer.add_callback(ZeroShotCallback(trainer, rows, COLOURS, TEMPLATES))
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_zero_shot_accuracy@1" in entry]
    assert [entry["step"] for entry in entries] == [2, 4]
    assert all("eval_loss" not in entry for entry in entries)
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 2


def test_the_callback_changes_nothing_about_the_training(tmp_path):
    plain = make_trainer(tmp_path / "plain", eval_strategy="steps", eval_steps=1)
    watched = make_trainer(tmp_path / "watched", eval_strategy="steps", eval_steps=1)
    watched.add_callback(ZeroShotCallback(watched, labelled_rows(6), COLOURS))
    plain.train()
    watched.train()
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_best_checkpoint_is_chosen_by_it(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_zero_shot_accuracy@1",
    )
    callback = ZeroShotCallback(trainer, labelled_rows(40), COLOURS, TEMPLATES)
    trainer.add_callback(callback)
    trainer.train()
    history = [e["eval_zero_shot_accuracy@1"] for e in trainer.state.log_history if "eval_zero_shot_accuracy@1" in e]
    assert len(history) == 4 and max(history) > history[-1], "the last step is the best: choose other rows"
    assert trainer.state.best_metric == max(history)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{history.index(max(history)) + 1}")
    assert callback.compute()["accuracy@1"] == max(history)


def test_of_several_evaluation_sets_the_first_carries_it_and_a_test_set_does_not(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.eval_dataset = {"one": random_rows(8, seed=1), "two": random_rows(8, seed=2)}
    callback = ZeroShotCallback(trainer, labelled_rows(6), COLOURS)
    calls = []
    compute = callback.compute
    callback.compute = lambda: calls.append(None) or compute()
    trainer.add_callback(callback)
    assert "eval_zero_shot_accuracy@1" in trainer.evaluate()
    assert len(calls) == 1
    assert not any("zero_shot" in name for name in trainer.evaluate(random_rows(8), metric_key_prefix="test"))


def test_later_callbacks_see_the_metrics(tmp_path):
    class Reader(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            self.seen = dict(metrics)

    trainer, reader = make_trainer(tmp_path), Reader()
    trainer.add_callback(ZeroShotCallback(trainer, labelled_rows(6), COLOURS))
    trainer.add_callback(reader)
    trainer.evaluate()
    assert "eval_zero_shot_mean_per_class_accuracy" in reader.seen and "eval_R@1" in reader.seen


def test_what_is_wrong_is_said_before_training(tmp_path):
    trainer = make_trainer(tmp_path)
    rows = labelled_rows(6)
    table = datasets.Dataset.from_list(rows)
    cases = [
        ((rows, COLOURS, TEMPLATES, "class"), "label_column='class' is not a column .*there are: image, label"),
        ((table, COLOURS, TEMPLATES, "class"), "label_column='class' is not a column .*there are: image, label"),
        (([*rows, {**rows[0], "label": 5}], COLOURS), r"1 of 7 labels .*are none of 0 to 4.*\(5 is the first\)"),
        (([*rows, {**rows[0], "label": -1}], COLOURS), r"\(-1 is the first\)"),
        (([*rows, {**rows[0], "label": "red"}], COLOURS), r"\('red' is the first\)"),
        (([*rows, {**rows[0], "label": None}], COLOURS), r"\(None is the first\)"),
        ((table.rename_column("image", "picture"), COLOURS), "image_column='image' is not a column"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            ZeroShotCallback(trainer, *arguments)


def test_images_of_which_none_can_be_read(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.add_callback(ZeroShotCallback(trainer, labelled_rows(3, broken=(0, 1, 2)), COLOURS))
    with pytest.raises(ValueError, match="not one of the 3 images for zero-shot classification can be read"):
        trainer.evaluate()
