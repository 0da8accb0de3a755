# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The example script as a user starts it: flags, a recipe, a reference by path; and the recipes in the repository."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, SiglipModel, SiglipProcessor

from jest_hf import JESTConfig
from jest_hf.data import load_source
from jest_hf.data.subset import write_subset
from jest_hf.report import read_selections
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
RECIPES = [path for path in RECIPES if "run_jest.py" in path.read_text()]

# Small enough for seconds on one core.
TINY = {
    "max_steps": 2,
    "eval_steps": 1,
    "logging_steps": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 256,
    "filter_ratio": 0.5,
    "n_chunks": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
}


# Setting that names some data -> setting that chooses its rows.
SOURCES = {
    "dataset": "dataset_where",
    "eval_dataset": "eval_where",
    "test_dataset": "test_where",
    "train_reference_on": "train_reference_where",
}


@pytest.fixture(scope="module")
def run_jest():
    spec = importlib.util.spec_from_file_location("run_jest", ROOT / "examples" / "run_jest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_jest"] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["run_jest"]


def flags(settings: dict) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def launch(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "jest_hf/configs/single.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*command, "examples/run_jest.py", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_flags_on_the_built_in_data_with_both_comparisons(tmp_path):
    settings = {"max_train_rows": 64, "reference_steps": 2, "compare_uniform_steps": 3, "record_selection": True}
    settings |= {"criterion": "easy_reference", "cache_reference": True, "compare_learnability_steps": 1}
    settings |= {"compare_uniform_learning_rate": 1e-4, "compare_learnability_learning_rate": 2e-4}
    settings["image_size"] = 16  # of the models; the data are evaluated whole, several times
    done = launch(*flags({**TINY, **settings, "output_dir": tmp_path}))
    assert done.returncode == 0, done.stderr[-3000:]
    for expected in ("Training the reference on scenes:curated", "Training IID for 3 steps", "Training JEST for 1"):
        assert expected in done.stdout

    summary = json.loads((tmp_path / "summary.json").read_text())
    runs = summary.pop("runs")
    assert list(runs) == ["IID", "JEST", "JEST by easy_reference"]
    counts = {name: (one["examples_trained"], one["examples_seen"]) for name, one in runs.items()}
    assert counts == {"IID": (24, 24), "JEST": (8, 16), "JEST by easy_reference": (16, 32)}
    assert [one["learning_rate"] for one in runs.values()] == [1e-4, 2e-4, 5e-5]
    for one in runs.values():
        points = one["evaluations"]
        assert [point["trained"] for point in points] == [8, 16, 24][: one["examples_trained"] // 8]
        assert one["flops"] == points[-1]["flops"] > 0 and 0 <= one["test"]["test_R@5"] <= 1
        for clock in ("seconds", "cpu_seconds"):
            spent = [0.0, *(point[clock] for point in points)]
            assert spent == sorted(set(spent))
    # A step costs as much as an IID step, and the draw; the pass over the 64 rows comes before the first.
    first, second = (point["flops"] for point in runs["JEST by easy_reference"]["evaluations"])
    step = runs["IID"]["flops"] / 3
    assert step <= second - first < 1.1 * step
    assert first - (second - first) == pytest.approx(step / 3 / 8 * 64)
    assert summary["reference"]["flops"] == pytest.approx(2 * step) and summary["reference"]["seconds"] > 0
    aim = runs["IID"]["evaluations"][-1]["quality"]
    for name, shares in summary["to_baseline"].items():
        reached = [point for point in runs[name]["evaluations"] if point["quality"] >= aim]
        assert (shares is not None) == bool(reached)
        assert f"{name} {'reached' if reached else 'did not reach'} IID's final validation R@5" in done.stdout
    assert list(summary["to_baseline"]) == ["JEST", "JEST by easy_reference"]
    assert "| FLOPs " in done.stdout and "| seconds " in done.stdout
    of_reference = r"^\| reference +\| 16 +\| 16 +\|.*\| 0\.\d{3} +\| 0\.\d{3} +\|$"
    assert re.search(of_reference, done.stdout, re.MULTILINE)

    with Image.open(tmp_path / "quality.png") as plot:
        assert min(plot.size) > 300
    card = (tmp_path / "README.md").read_text()
    assert "library_name: transformers" in card and "scenes:web" in card and "easy reference" in card
    assert "Measured on scenes:validation." in card
    assert re.search(r"^\| R@5 +\| +\d\S* \| +\d\S* \|$", card, re.MULTILINE) and "| its reference |" in card
    assert len(read_selections(tmp_path / "selections.parquet")) == 16
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(model, SiglipModel) and isinstance(processor, SiglipProcessor)
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    assert isinstance(AutoModel.from_pretrained(tmp_path / "reference"), SiglipModel)


def test_a_recipe_over_local_files_with_a_reference_by_path(tmp_path, run_jest, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.Dataset.from_list(
        [
            {"picture": row["image"], "words": [row["text"], "a star"], "part": "eval" if index % 4 == 0 else "train"}
            for index, row in enumerate(random_rows(48))
        ]
    )
    rows.to_parquet(tmp_path / "rows.parquet")
    for name, seed in (("learner", 0), ("reference", 1)):
        tiny_siglip(seed).save_pretrained(tmp_path / name)
        tiny_siglip_processor().save_pretrained(tmp_path / name)
    recipe = {
        **TINY,
        "dataset": str(tmp_path / "rows.parquet"),
        "dataset_where": {"part": "train"},
        "eval_dataset": str(tmp_path / "rows.parquet"),
        "eval_where": {"part": "eval"},
        "image_column": "picture",
        "caption_column": "words",
        "learner": str(tmp_path / "learner"),
        "learning_rate": 1e-3,
        "max_steps": 1,
        "output_dir": str(tmp_path / "not here"),
        "record_selection": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    overriding = {"ref_model": tmp_path / "reference", "max_steps": 2, "output_dir": out}
    run_jest.main(["--config", str(tmp_path / "recipe.yaml"), *flags(overriding)])

    assert not (tmp_path / "not here").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["runs"]) == ["JEST"]
    run = summary["runs"]["JEST"]
    assert (run["examples_trained"], run["examples_seen"]) == (16, 32)
    assert "test_R@1" in run["test"]  # without test data, that of the evaluation
    trained = load_file(out / "model.safetensors")
    untouched = load_file(tmp_path / "learner" / "model.safetensors")
    assert trained.keys() == untouched.keys()
    assert any(not torch.equal(trained[name], untouched[name]) for name in trained)
    assert {row["step"] for row in read_selections(out / "selections.parquet").to_pylist()} == {1, 2}


def test_a_reference_trained_on_local_data_and_the_best_checkpoint_kept(tmp_path, run_jest, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, seed in (("pool", 0), ("curated", 1), ("eval", 2)):
        datasets.Dataset.from_list(random_rows(24, seed=seed)).to_parquet(tmp_path / f"{name}.parquet")
    settings = {
        **TINY,
        "dataset": tmp_path / "pool.parquet",
        "train_reference_on": tmp_path / "curated.parquet",
        "reference_steps": 1,
        "eval_dataset": tmp_path / "eval.parquet",
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "image_size": 16,
        "output_dir": tmp_path / "out",
    }
    run_jest.main(flags(settings))
    best = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())["best_global_step"]
    kept = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(tmp_path / "out" / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(weight, expected[name]) for name, weight in kept.items())
    assert isinstance(AutoModel.from_pretrained(tmp_path / "out" / "reference"), SiglipModel)


def test_adapters_on_a_learner_that_is_its_own_reference(tmp_path, run_jest, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_list(random_rows(48)).to_parquet(tmp_path / "rows.parquet")
    tiny_siglip(0).save_pretrained(tmp_path / "learner")
    tiny_siglip_processor().save_pretrained(tmp_path / "learner")
    settings = {"dataset": tmp_path / "rows.parquet", "learner": tmp_path / "learner", "output_dir": tmp_path / "out"}
    settings |= {"lora_r": 2, "reference": "adapter"}
    run_jest.main([*flags({**TINY, **settings}), "--lora_target_modules", "q_proj", "v_proj"])
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert weights and all("q_proj" in name or "v_proj" in name for name in weights)
    assert any(weight.abs().sum() > 0 for name, weight in weights.items() if "lora_B" in name)  # zero until trained


def test_data_without_a_caption_column(tmp_path, run_jest, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"image": row["image"], "title": row["text"]} for row in random_rows(24)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    settings = {**TINY, "dataset": tmp_path / "rows.parquet", "selection": "uniform", "output_dir": tmp_path / "out"}
    with pytest.raises(ValueError, match="none of the columns text, caption, captions .*image, title.*caption_column"):
        run_jest.main(flags(settings))


def test_a_run_by_learnability_is_not_compared_with_itself(tmp_path, run_jest):
    settings = {**TINY, "compare_learnability_steps": 2, "output_dir": tmp_path, "max_train_rows": 8}
    with pytest.raises(ValueError, match="compare_learnability_steps=2 .* criterion='learnability'.*leave it out"):
        run_jest.main(flags(settings))


def test_settings_that_do_not_exist(tmp_path, run_jest, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("filter_ration: 0.5\nlearner_size: tiny\n")
    with pytest.raises(ValueError, match=r"'filter_ration', which does not exist \(did you mean 'filter_ratio'\?\)"):
        run_jest.parse(["--config", str(recipe)])
    with pytest.raises(SystemExit, match="2"):
        run_jest.parse(["--filter_ration", "0.5"])
    assert "run_jest.py: --filter_ration does not exist (did you mean --filter_ratio?)" in capsys.readouterr().err


def test_flags_win_over_a_recipe_and_a_recipe_over_the_defaults(tmp_path, run_jest):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "filter_ratio: 0.5\nn_chunks: 4\nimage_size: 64\ndataset_where: {split: train}\nuse_cpu: true\n"
        "learning_rate: 1e-4\n"  # a string to YAML 1.1, which wants a point
    )
    script, args = run_jest.parse(["--n_chunks", "2", "--config", str(recipe), "--dataset_where", '{"split": "test"}'])
    assert (args.filter_ratio, args.n_chunks, args.use_cpu, args.learning_rate) == (0.5, 2, True, 1e-4)
    assert (script.image_size, script.patch_size) == (64, 8)
    assert script.dataset_where == {"split": "test"}
    assert (args.logging_steps, args.output_dir) == (20, "jest-out")


def test_the_baseline_of_a_flexi_run_sees_everything_in_full(run_jest, monkeypatch):
    monkeypatch.setattr(
        run_jest.comparison, "load_source", lambda *_, **__: datasets.Dataset.from_list(random_rows(8))
    )
    words = ["--config", str(ROOT / "examples" / "recipes" / "flexi.yaml"), "--use_cpu", "True"]
    job = run_jest.Job(*run_jest.parse(words))
    assert job.args.scoring_view is not None
    baseline = job.settings(selection="uniform")
    assert baseline.scoring_view is None and not baseline.eval_at_view


def test_a_subset_of_the_training_data(run_jest, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = random_rows(8)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    write_subset(tmp_path / "kept.parquet", {"row": [1, 6]}, n_rows=8)
    settings = {"dataset": tmp_path / "rows.parquet", "eval_dataset": tmp_path / "rows.parquet", "use_cpu": True}
    job = run_jest.Job(
        *run_jest.parse(flags({**settings, "subset": tmp_path / "kept.parquet", "output_dir": tmp_path}))
    )
    assert job.train["text"][:] == [rows[1]["text"], rows[6]["text"]] and len(job.eval) == 8


def test_the_demonstration_is_what_runs_without_arguments(run_jest):
    script, args = run_jest.parse([])
    assert isinstance(args, JESTConfig)
    for name, value in yaml.safe_load(run_jest.DEMONSTRATION.read_text()).items():
        holder = args if name in JESTConfig.__dataclass_fields__ else script
        assert getattr(holder, name) == value, name
    assert (script.dataset, script.train_reference_on) == ("scenes:web", "scenes:curated")
    assert (script.eval_dataset, script.test_dataset) == ("scenes:validation", "scenes:test")
    assert max(args.max_steps, script.compare_learnability_steps) < script.compare_uniform_steps
    assert (args.criterion, args.selection, args.cache_reference) == ("easy_reference", "joint", True)
    assert script.compare_learnability_steps > 0 and args.select_before_decoding is not False


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_hold_settings_that_exist(recipe, run_jest):
    settings = yaml.safe_load(recipe.read_text())
    settings.pop("bf16", None)  # not every machine that runs the tests has it
    script, args = run_jest.parse(["--config", str(recipe), "--bf16", "False", "--use_cpu", "True"])
    for name, value in settings.items():
        holder = args if name in JESTConfig.__dataclass_fields__ else script
        assert getattr(holder, name) == value, name
    assert script.ref_model or script.train_reference_on
    assert args.output_dir.startswith("jest-out")  # which git ignores
    assert f"--config examples/recipes/{recipe.name}" in recipe.read_text()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_find_their_local_files(recipe, run_jest, monkeypatch, tmp_path):
    if not (ROOT / "../shared/data").is_dir():
        pytest.skip("no data beside the repository, in ../shared/data")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    script, args = run_jest.parse(["--config", str(recipe), "--bf16", "False", "--use_cpu", "True"])
    named = {name: getattr(script, name) for name in SOURCES if getattr(script, name)}
    if not all(source.startswith("../shared/data/") for source in named.values()):
        pytest.skip(f"{recipe.name} names no local files")
    assert named.keys() == SOURCES.keys()
    for name, source in named.items():
        rows = load_source(source, where=getattr(script, SOURCES[name]), max_rows=5)
        assert {script.image_column, script.caption_column or "caption"} <= set(rows.column_names), name
        if name.startswith(("eval", "test")):
            assert args.eval_group_column in rows.column_names, name
