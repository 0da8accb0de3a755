# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What is refused before the first step, and in which words."""

from __future__ import annotations

import datasets
import pytest
from transformers import TrainingArguments

from jest_hf import JESTTrainer
from tests.helpers import random_rows, tiny_clip, tiny_clip_processor, tiny_siglip, tiny_siglip2, tiny_siglip_processor
from tests.trainers import arguments, make_trainer


def test_what_does_not_fit_together_is_refused_at_construction(tmp_path):
    rows = random_rows(80)
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    cases = [
        ({"rows": rows[:20]}, "train_dataset has 20 rows, fewer than one super-batch of 32"),
        ({"rows": [{"picture": row["image"], "text": "a"} for row in rows]}, "no column 'image'"),
        ({"rows": [{"image": row["image"], "title": "a"} for row in rows]}, "caption_column"),
        ({"rows": datasets.Dataset.from_list([{"text": "a"}] * 40)}, "image_column='image' is not a column"),
        ({"rows": stream, "cache_reference": True}, "cache_reference=True embeds the training data by index"),
        ({"rows": stream, "save_strategy": "epoch"}, "save_strategy='epoch': a stream has no epochs"),
        ({"rows": stream, "options": {"eval_dataset": stream}}, "cannot be read by index"),
        ({"rows": stream.skip(80)}, "a stream without a single row"),
        ({"model": tiny_siglip(0, image_size=24)}, "makes images of 16 px, and the learner takes 24 px"),
        ({"model": tiny_siglip(0, max_length=4)}, "padded to 8 tokens, and the learner has 4 text positions"),
        ({"reference": tiny_siglip(1, image_size=24)}, "the reference takes 24 px"),
        ({"model": tiny_siglip2(0)}, "makes images, which a siglip2 learner cannot read"),
        ({"reference": tiny_clip(1)}, "loss='sigmoid' needs a logit_bias, and the reference"),
        ({"model": tiny_clip(0), "processor": tiny_clip_processor(), "loss": "sigmoid"}, "and the learner"),
        ({"reference": tiny_siglip(1), "ref_model_revision": "main"}, "ref_model_revision='main'"),
        ({"options": {"eval_dataset": [{"image": rows[0]["image"]}]}}, "caption_column"),
        ({"options": {"eval_dataset": rows}, "eval_group_column": "concept"}, "eval_group_column='concept'"),
    ]
    for case, message in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            make_trainer(tmp_path, **case)


def test_a_missing_reference_arguments_or_processor(tmp_path):
    common = {"train_dataset": random_rows(80), "processing_class": tiny_siglip_processor()}
    with pytest.raises(ValueError, match="criterion='learnability' needs a reference: pass ref_model"):
        JESTTrainer(model=tiny_siglip(0), args=arguments(tmp_path), **common)
    with pytest.raises(ValueError, match="args must be a JESTConfig, got TrainingArguments"):
        JESTTrainer(model=tiny_siglip(0), args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True), **common)
    with pytest.raises(ValueError, match="processing_class=None"):
        JESTTrainer(model=tiny_siglip(0), args=arguments(tmp_path, selection="uniform"))
    with pytest.raises(ValueError, match="data_collator must be a JESTDataCollator, or one .* got function"):
        JESTTrainer(model=tiny_siglip(0), args=arguments(tmp_path), data_collator=lambda rows: rows, **common)
    # Neither needs a reference.
    for changes in ({"selection": "uniform"}, {"criterion": "hard_learner"}):
        JESTTrainer(model=tiny_siglip(0), args=arguments(tmp_path, **changes), **common)


def test_a_vocabulary_that_the_model_does_not_know(tmp_path):
    model = tiny_siglip(0)
    model.config.text_config.vocab_size = 3
    with pytest.raises(ValueError, match=r"goes up to token 13, and the learner knows 3 tokens"):
        make_trainer(tmp_path, model=model)
