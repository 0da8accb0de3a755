# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The example script for labels and language models: every recipe for a few steps, a learner and data by path."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

from jest_hf import JESTConfig
from jest_hf.report import read_selections
from tests.helpers import random_rows


ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "examples" / "recipes").glob("*.yaml") if "run_labelled" in path.read_text())

# Seconds on one core: 24 rows are 3 super-batches of half of which is trained on.
FEW = {
    "max_train_rows": 48,
    "reference_steps": 2,
    "compare_uniform_steps": 3,
    "max_steps": 2,
    "eval_steps": 1,
    "logging_steps": 1,
    "per_device_train_batch_size": 8,
    "filter_ratio": 0.5,
    "max_length": 12,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def run_labelled():
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module("run_labelled")
    finally:
        sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def scenes(run_labelled):
    """Fewer rows of the built-in data than the recipes evaluate on and hold out."""
    load = run_labelled.comparison.load_source

    def fewer(spec, max_rows=None, **options):
        return load(spec, max_rows=min(max_rows or 40, 40) if spec.startswith("scenes") else max_rows, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_labelled.comparison, "load_source", fewer)
        yield


def flags(settings: dict) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_hold_settings_that_exist(recipe, run_labelled):
    script, args = run_labelled.parse(["--config", str(recipe), "--use_cpu", "True"])
    for name, value in yaml.safe_load(recipe.read_text()).items():
        holder = args if name in JESTConfig.__dataclass_fields__ else script
        assert getattr(holder, name) == value, name
    assert script.train_reference_on == "scenes:curated" and script.eval_dataset == "scenes:validation"
    assert args.output_dir == f"jest-out/{recipe.stem}"  # which git ignores
    assert args.max_steps <= script.compare_uniform_steps / 2
    assert f"--config examples/recipes/{recipe.name}" in recipe.read_text()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_train_and_leave_a_plain_checkpoint(recipe, run_labelled, scenes, tmp_path, capsys):
    run_labelled.main(["--config", str(recipe), *flags({**FEW, "output_dir": tmp_path})])
    script, args = run_labelled.parse(["--config", str(recipe), "--use_cpu", "True"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["runs"]) == ["uniform", args.preset or "independent"]
    counts = [(run["examples_trained"], run["examples_seen"]) for run in summary["runs"].values()]
    assert counts == [(24, 24), (16, 32)]
    metric = "perplexity" if script.kind == "language_model" else "accuracy"
    for run in summary["runs"].values():
        assert run["flops"] > 0 and f"test_{metric}" in run["test"]
        assert [point["trained"] for point in run["evaluations"]] == [8, 16, 24][: run["examples_trained"] // 8]
        assert sum(seen for _, seen in run["sources"].values()) == run["examples_seen"]
    printed = capsys.readouterr().out
    assert "Training the reference on scenes:curated (40 rows)" in printed and metric in printed

    model = run_labelled.MODELS[script.kind].from_pretrained(tmp_path)
    reference = run_labelled.MODELS[script.kind].from_pretrained(tmp_path / "reference")
    assert model.num_parameters() > reference.num_parameters()
    processor = AutoProcessor.from_pretrained(tmp_path)
    if script.kind == "language_model":
        assert processor.model_input_names == ["input_ids", "attention_mask"]
    else:
        assert model.config.label2id == reference.config.label2id and len(model.config.label2id) == 8
    assert len(read_selections(tmp_path / "selections.parquet")) == 16
    assert (tmp_path / "quality.png").exists() and "scenes:web" in (tmp_path / "README.md").read_text()


def test_noise_is_made_in_the_training_data_alone(run_labelled, scenes, tmp_path):
    words = flags({"label_noise": 0.5, "text_noise": 0.25, "output_dir": tmp_path, "use_cpu": True})
    noisy = run_labelled.Job(*run_labelled.parse(words))
    clean = run_labelled.Job(*run_labelled.parse(words[4:]))
    assert sum(a != b for a, b in zip(noisy.train["label"], clean.train["label"], strict=True)) == 20
    assert noisy.train["text_noise"][:].count("scrambled") == 10
    for part in ("eval", "test", "curated"):
        assert getattr(noisy, part)["label"] == getattr(clean, part)["label"]
        assert getattr(noisy, part)["caption"] == getattr(clean, part)["caption"]


def test_a_learner_a_reference_and_data_by_path(run_labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"picture": row["image"], "kind": "cat" if i % 3 else "dog"} for i, row in enumerate(random_rows(48))]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    config = run_labelled.TINY_CONFIGS["image_classification"] | {"image_size": 32}
    for name, classes in (("learner", ["some", "head", "else"]), ("reference", ["cat", "dog"])):
        label2id = {name: number for number, name in enumerate(classes)}
        settings = {"label2id": label2id, "id2label": dict(enumerate(classes))}
        AutoModelForImageClassification.from_config(AutoConfig.for_model(**config, **settings)).save_pretrained(
            tmp_path / name
        )
        run_labelled.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
    settings = {name: value for name, value in FEW.items() if name not in ("compare_uniform_steps", "max_length")}
    settings |= {"dataset": tmp_path / "rows.parquet", "image_column": "picture", "label_column": "kind"}
    settings |= {"eval_dataset": tmp_path / "rows.parquet", "learner": tmp_path / "learner"}
    out = tmp_path / "out"
    run_labelled.main(flags({**settings, "ref_model": tmp_path / "reference", "output_dir": out}))
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.config.label2id == {"cat": 0, "dog": 1} and model.classifier.out_features == 2
    (run,) = json.loads((out / "summary.json").read_text())["runs"].values()
    assert 0 <= run["test"]["test_accuracy"] <= 1  # without test data, that of the evaluation


def test_a_column_of_labels_that_is_not_there(run_labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_dict({"text": ["a", "b"], "topic": [0, 1]}).to_parquet(tmp_path / "rows.parquet")
    settings = {"kind": "text_classification", "dataset": tmp_path / "rows.parquet", "output_dir": tmp_path}
    with pytest.raises(
        ValueError, match="label_column='label' is not a column of the data .*text, topic.*label_column"
    ):
        run_labelled.main(flags({**settings, "use_cpu": True}))


def test_settings_that_do_not_exist(tmp_path, run_labelled):
    (tmp_path / "recipe.yaml").write_text("label_nose: 0.5\n")
    with pytest.raises(
        ValueError, match="has the setting 'label_nose', which does not exist .did you mean 'label_noise'"
    ):
        run_labelled.parse(["--config", str(tmp_path / "recipe.yaml")])


def test_a_resumed_run_reports_the_evaluations_before_it_too(run_labelled, scenes, tmp_path):
    settings = {name: value for name, value in FEW.items() if name not in ("compare_uniform_steps", "max_length")}
    settings |= {"output_dir": tmp_path, "save_strategy": "steps", "save_steps": 1}
    whole = evaluations_of(run_labelled, settings, tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert evaluations_of(run_labelled, settings | {"resume_from_checkpoint": True}, tmp_path) == whole
    assert [point["trained"] for point in whole] == [8, 16]


def evaluations_of(run_labelled, settings, out) -> list[dict]:
    run_labelled.main(flags(settings))
    (run,) = json.loads((out / "summary.json").read_text())["runs"].values()
    return [{name: value for name, value in one.items() if "seconds" not in name} for one in run["evaluations"]]


def test_uniform_training_is_not_compared_with_itself(run_labelled, scenes, tmp_path):
    settings = {**FEW, "selection": "uniform", "max_length": 20, "output_dir": tmp_path}
    run_labelled.main(flags(settings))
    runs = json.loads((tmp_path / "summary.json").read_text())["runs"]
    assert {name: run["examples_trained"] for name, run in runs.items()} == {"uniform": 16}


def test_configurations_as_json(run_labelled):
    script, _ = run_labelled.parse(["--learner_config", '{"model_type": "vit"}', "--use_cpu", "True"])
    assert script.learner_config == {"model_type": "vit"} and script.reference_config is None


def test_kinds_make_the_models_that_they_name(run_labelled):
    assert set(run_labelled.MODELS) == set(run_labelled.TINY_CONFIGS)
    assert run_labelled.MODELS["text_classification"] is AutoModelForSequenceClassification
    assert run_labelled.MODELS["language_model"] is AutoModelForCausalLM
    assert run_labelled.parse([])[1].preset == "rho_loss"
    assert run_labelled.parse(["--use_cpu", "True"])[1].selection == "independent"
    for words in (["--preset", "rho_loss"], ["--preset=rho_loss"]):
        assert run_labelled.parse([*words, "--use_cpu", "True"])[1].selection == "top_k"
