# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation by the trainer, and what it leaves behind."""

from __future__ import annotations

import numpy as np
import pytest

from jest_hf import JESTDataCollator, JESTTrainer
from jest_hf.evaluation.retrieval import TIE
from tests.helpers import (
    random_rows,
    tiny_siglip,
    tiny_siglip_processor,
)
from tests.trainers import arguments, logged, make_trainer


def test_evaluation_counts_all_captions_and_groups(tmp_path):
    rows = random_rows(12, seed=3)
    for index, row in enumerate(rows):
        row["text"] = ["a red star", row["text"]] if index % 3 == 0 else row["text"]
        row["group"] = "even" if index % 2 == 0 else "odd"
    rows[7]["image"] = None
    trainer = make_trainer(
        tmp_path, options={"eval_dataset": rows}, eval_group_column="group", per_device_eval_batch_size=5
    )
    metrics = trainer.evaluate()
    output = trainer.predict(rows)
    image, text = output.predictions
    assert image.shape == (12, 32) and np.isnan(image[7]).all() and text.shape == (15, 32)
    assert output.label_ids.tolist() == [row for row in range(12) for _ in range(2 if row % 3 == 0 else 1) if row != 7]
    image = np.delete(image, 7, axis=0)
    assert metrics["eval_examples_skipped"] == 1

    kept = [index for index in range(12) if index != 7]
    caption_of = [position for position, index in enumerate(kept) for _ in range(2 if index % 3 == 0 else 1)]
    groups = np.array([kept[position] % 2 for position in range(11)])
    own = groups[:, None] == groups[caption_of]
    similarity = image @ text.T
    best, other = (np.where(mask, similarity, -np.inf).max(axis=1) for mask in (own, ~own))
    hits = int((best > other + TIE).sum())  # "a red star" is a caption of both groups: a tie, which is a miss
    assert metrics["eval_image_to_text_R@1"] == hits / 11
    assert metrics["eval_image_to_text_R@10"] >= metrics["eval_image_to_text_R@1"]


def test_several_evaluation_sets_and_the_best_checkpoint(tmp_path):
    trainer = make_trainer(
        tmp_path,
        options={"eval_dataset": {"one": random_rows(8, seed=1), "two": random_rows(8, seed=2)}},
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_two_R@5",
    )
    trainer.train()
    best = max(logged(trainer, "eval_two_R@5"))
    assert trainer.state.best_metric == best
    assert trainer.evaluate()["eval_two_R@5"] == best


def test_the_card_tells_of_this_run(tmp_path):
    trainer = make_trainer(tmp_path, options={"eval_dataset": random_rows(8, seed=1)})
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card(dataset="rows/of-a-test")
    card = (tmp_path / "README.md").read_text()
    for expected in ("joint", "0.75", "| 24 ", "| 96 ", "rows/of-a-test", "R@5", "SiglipModel"):
        assert expected in card, expected


def test_evaluation_alone_needs_no_training_data(tmp_path):
    trainer = JESTTrainer(
        tiny_siglip(0), arguments(tmp_path, selection="uniform"), None, None, random_rows(8), tiny_siglip_processor()
    )
    assert 0 <= trainer.evaluate()["eval_R@1"] <= 1
    trainer.create_model_card()
    with pytest.raises(ValueError, match="train_dataset=None"):
        trainer.train()


def test_a_learner_may_come_from_model_init(tmp_path):
    trainer = JESTTrainer(
        model_init=lambda: tiny_siglip(0),
        ref_model=tiny_siglip(1),
        args=arguments(tmp_path),
        train_dataset=random_rows(80),
        processing_class=tiny_siglip_processor(),
    )
    trainer.train()
    assert trainer.state.global_step == 3


def test_an_existing_script_needs_only_the_config_and_the_collator(tmp_path):
    """Positional arguments in the order of `transformers.Trainer`."""
    processor = tiny_siglip_processor()
    rows = random_rows(80)
    trainer = JESTTrainer(
        tiny_siglip(0), arguments(tmp_path), JESTDataCollator(processor), rows, rows[:8], ref_model=tiny_siglip(1)
    )
    trainer.train()
    assert trainer.state.global_step == 3
