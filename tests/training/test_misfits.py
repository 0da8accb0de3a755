# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What is refused before the first step, and in which words."""

from __future__ import annotations

import datasets
import pytest
from peft import LoraConfig
from transformers import TrainingArguments

from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer
from jest_hf.data.labelled import ImageLabelCollator
from jest_hf.models import add_adapter
from tests.helpers import random_rows, tiny_clip, tiny_clip_processor, tiny_siglip, tiny_siglip2, tiny_siglip_processor
from tests.objectives.labelled import CLASSES, image_rows, tiny_vit, tiny_vit_processor
from tests.trainers import arguments, make_trainer


def test_what_does_not_fit_together_is_refused_at_construction(tmp_path):
    rows = random_rows(80)
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    cases = [
        ({"rows": rows[:20]}, "train_dataset has 20 rows, fewer than one super-batch of 32"),
        ({"rows": [{"picture": row["image"], "text": "a"} for row in rows]}, "image_column='image' is not a column"),
        ({"rows": [{"image": row["image"], "title": "a"} for row in rows]}, "caption_column"),
        ({"rows": datasets.Dataset.from_list([{"text": "a"}] * 40)}, "image_column='image' is not a column"),
        ({"rows": stream, "cache_reference": True}, "cache_reference=True embeds the training data by index"),
        ({"rows": stream, "preset": "two_stage", "filter_ratio": None}, "cache_reference=True embeds the training"),
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
        (
            {"options": {"eval_dataset": [{"image": rows[0]["image"]}]}},
            r"eval_dataset: .* \(there are: image\).*caption_column",
        ),
        ({"options": {"eval_dataset": {"a": rows, "b": [{"text": "x"}]}}}, r"eval_dataset\['b'\]: .*image_column"),
        ({"rows": datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})}, r"dataset\['test'\]"),
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
    with pytest.raises(ValueError, match="data_collator must be a JESTDataCollator, or a collator .* got function"):
        JESTTrainer(model=tiny_siglip(0), args=arguments(tmp_path), data_collator=lambda rows: rows, **common)
    comparison = {"criterion": "hard_learner", "compare_selectors": ["uniform", "top_k/easy_reference"]}
    with pytest.raises(
        ValueError, match="compare_selectors=.*top_k/easy_reference.* needs a reference: pass ref_model"
    ):
        JESTTrainer(model=tiny_siglip(0), args=arguments(tmp_path, **comparison), **common)
    with pytest.raises(ValueError, match="distillation_weight=1.0 needs a reference: .*, or set it to 0"):
        settings = {"criterion": "hard_learner", "distillation_weight": 1.0}
        JESTTrainer(model=tiny_siglip(0), args=arguments(tmp_path, **settings), **common)
    # None of these needs a reference.
    alone = {"criterion": "hard_learner", "compare_selectors": ["uniform", "top_k/hard_learner"]}
    for changes in ({"selection": "uniform"}, {"criterion": "hard_learner"}, alone):
        JESTTrainer(model=tiny_siglip(0), args=arguments(tmp_path, **changes), **common)


def test_one_model_in_two_roles(tmp_path):
    """The learner would be frozen with the reference, and the proxy trained twice."""
    model = tiny_siglip(0)
    with pytest.raises(ValueError, match="ref_model and model are the same model, and .* would .* pass a copy"):
        make_trainer(tmp_path, model=model, reference=model)
    with pytest.raises(ValueError, match="ref_model and model are the same model"):
        adapted = add_adapter(model, LoraConfig(target_modules=["q_proj"]))
        make_trainer(tmp_path, model=adapted, reference=model)
    for other in ("model", "reference"):
        with pytest.raises(
            ValueError, match=f"proxy_model and {other.replace('erence', '_model')} are the same model, and training"
        ):
            make_trainer(tmp_path, options={"proxy_model": model}, scoring="proxy", **{other: model})


def test_a_collator_and_selectors_of_another_objective(tmp_path):
    labelled = {
        "model": tiny_vit(0), "ref_model": tiny_vit(1), "train_dataset": image_rows(80),
        "processing_class": tiny_vit_processor(),
    }  # fmt: skip
    args = {"output_dir": tmp_path, "use_cpu": True, "selection": "independent"}
    collator = JESTDataCollator(tiny_siglip_processor())
    with pytest.raises(ValueError, match="data_collator=JESTDataCollator.* objective='classification' trains"):
        JESTTrainer(args=JESTConfig(**args), data_collator=collator, **labelled)
    collator = ImageLabelCollator(tiny_vit_processor(), CLASSES)
    with pytest.raises(ValueError, match="=ImageLabelCollator.* objective='contrastive' .* use JESTDataCollator"):
        make_trainer(tmp_path, options={"data_collator": collator})
    selectors = ["uniform", "joint/learnability", "independent/learnability"]
    with pytest.raises(ValueError, match=r"compare_selectors=\['joint/learnability'\] needs examples that make pairs"):
        JESTTrainer(args=JESTConfig(**args, compare_selectors=selectors), **labelled)


def test_a_vocabulary_that_the_model_does_not_know(tmp_path):
    model = tiny_siglip(0)
    model.config.text_config.vocab_size = 3
    with pytest.raises(ValueError, match=r"goes up to token 13, and the learner has 3 tokens"):
        make_trainer(tmp_path, model=model)
