# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The example script with bad input, and with data as people have them: by its flags alone."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from tests.data.test_formats import MIXED, picture, tar
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
TINY = (
    "--use_cpu --max_steps 2 --logging_steps 1 --per_device_train_batch_size 4 --filter_ratio 0.5 --n_chunks 2 "
    "--selection uniform --disable_tqdm --save_strategy no --dataset_split train "
)


@pytest.fixture(scope="module")
def run_jest():
    sys.path.insert(0, str(ROOT / "examples"))
    yield importlib.import_module("run_jest")
    sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for name in ("model", "model"):
        tiny_siglip(1).save_pretrained(folder / name)
        tiny_siglip_processor().save_pretrained(folder / name)
    datasets.Dataset.from_list(random_rows(16)).to_parquet(folder / "pairs.parquet")
    datasets.Dataset.from_dict({"url": ["https://a/0.jpg"] * 3, "text": list("abc")}).to_parquet(
        folder / "urls.parquet"
    )
    samples = [{**MIXED[k % 2], "txt": f"a thing {k}".encode()} for k in range(16)]
    tar(folder / "mixed.tar", samples)
    (folder / "images").mkdir()
    for k in range(16):
        (folder / "images" / f"{k}.png").write_bytes(picture(k % 9))
    lines = ["filepath\ttitle", *(f"images/{k}.png\ta thing, number {k}" for k in range(16))]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "broken.csv").write_text(
        "filepath\ttitle\n" + "".join(f"images/{k}.gif\tnot there\n" for k in range(16))
    )
    return folder


@pytest.fixture
def run(run_jest, made, tmp_path, monkeypatch):
    """Run the script as a user does, and return what it says at the end if it refuses."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's tries

    def call(words: str) -> str:
        arguments = [word.format(made=made, out=tmp_path / "out") for word in words.split()]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "examples" / "run_jest.py"), *arguments])
        written = io.StringIO()
        with contextlib.redirect_stderr(written):
            try:
                run_jest.script_flags.run_script(run_jest.main, run_jest.ScriptArguments, run_jest.JESTConfig)
            except SystemExit as left:
                return left.code if isinstance(left.code, str) else written.getvalue().strip().split("\n")[-1]
        return ""

    return call


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--filter_ration 0.5", "--filter_ration does not exist .did you mean --filter_ratio"),
        ("--filter_ratio 1.5", r"--filter_ratio 1.5 must be in \[0, 1\)"),
        ("--criterion learnabilty", "--criterion learnabilty is not known .did you mean learnability"),
        ("--config {made}/nothing.yaml", "--config .*nothing.yaml does not exist"),
        ("--dataset_where {{a", '--dataset_where {a is not JSON .*, such as {"split": "train"}'),
        ("--dataset {made}/nothing.parquet", "--dataset .*nothing.parquet does not exist; check the path"),
        ("--dataset me/nothing", "--dataset me/nothing cannot be loaded .*; check the name and the network"),
        ("--dataset {made}/pairs.parquet --dataset_split trian", "--dataset_split trian is not .*did you mean train"),
        ("--dataset {made}/pairs.parquet --eval_dataset {made}/no.tar", "--eval_dataset .*no.tar does not exist"),
        ("--dataset {made}/pairs.parquet --eval_dataset {made}/pairs.parquet --eval_split tset", "--eval_split tset"),
        ("--dataset {made}/pairs.parquet --train_reference_on {made}/pairs.parquet --train_reference_where "
         '{{"sauce":"a"}}', "--train_reference_where '{\"sauce\": \"a\"}' names the column 'sauce'"),
        ("--dataset {made}/urls.parquet", "--dataset .*urls.parquet has no images, only their addresses"),
        ("--dataset {made}/table.csv --image_column filepath", "none of the columns text, caption, captions"),
        ("--dataset {made}/pairs.parquet --learner {made}/nothing", "--learner .*nothing is neither a folder nor"),
        ("--dataset {made}/pairs.parquet --learner {made}/images", "--learner .*images has no processor"),
        ("--dataset {made}/pairs.parquet --streaming", "--streaming needs --learner"),
        ("--dataset {made}/pairs.parquet --streaming --learner {made}/model --max_steps -1", "needs --max_steps"),
        ("--dataset {made}/pairs.parquet --subset {made}/no.parquet", "--subset .*no.parquet does not exist"),
        ("--dataset {made}/pairs.parquet --learner {made}/model --selection joint", "ref_model|reference"),
        ("--dataset {made}/pairs.parquet --learner {made}/model --push_to_hub --hub_model_id me/x", "me/x"),
        ("--dataset {made}/pairs.parquet --learner {made}/model --resume_from_checkpoint {made}/images", "images"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(run, words, expected):
    defaults = TINY if "split" not in words else TINY.replace("--dataset_split train ", "")
    said = run(f"{defaults if 'dataset ' in words else '--use_cpu '} {words} --output_dir {{out}}")
    assert said.startswith("run_jest.py: ") and re.search(expected, said), said


@pytest.mark.parametrize(
    "words",
    [
        "--dataset {made}/mixed.tar",
        "--dataset {made}/mixed.tar --image_column png;jpg;webp --caption_column json.caption;txt",
        "--dataset {made}/mixed.tar --streaming --learner {made}/model",
        "--dataset {made}/table.csv --image_column filepath --caption_column title",
        "--dataset {made}/table.csv --image_column image;filepath --caption_column text;title --streaming "
        "--learner {made}/model",
    ],
)
def test_data_as_people_have_them(run, made, tmp_path, monkeypatch, words):
    monkeypatch.chdir(made)  # a stream keeps relative paths
    assert run(f"{TINY} {words} --output_dir {{out}}") == ""
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["runs"]["IID"]
    assert (summary["examples_trained"], summary["examples_skipped"]) == (8, 0)
    assert all(torch.isfinite(one).all() for one in load_file(tmp_path / "out" / "model.safetensors").values())


def test_a_recipe_of_stages_that_is_wrong(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"output_dir: {tmp_path}/out\npool: {{spec: scenes:web}}\n")
    script = [sys.executable, "examples/bootstrap_reference.py", "--config", str(tmp_path / "recipe.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "bootstrap_reference.py: the recipe sets none of curated_dataset, aligner and seed_dataset" in done.stderr


def test_a_wrong_flag_ends_the_process_with_status_two():
    script = [sys.executable, "examples/run_jest.py", "--filter_ration", "0.5"]
    done = subprocess.run(
        script, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("run_jest.py: --filter_ration does not exist (did you mean --filter_ratio?)")
