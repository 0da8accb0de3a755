# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The learner's card: its sections and metadata, that its code runs, and what it must not say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel

from jest_hf.data.processor import build_processor
from jest_hf.hub import RunSummary, learner_card
from jest_hf.models.build import build_siglip
from jest_hf.report import StepFlops


JOINT = RunSummary(
    architecture="SiglipModel",
    selection="joint",
    loss="sigmoid",
    criterion="learnability",
    filter_ratio=0.8,
    n_chunks=16,
    sub_batch_size=256,
    super_batch_size=1280,
    model_id="someone/jest-tiny",
    base_model="google/siglip-base-patch16-224",
    datasets=["someone/web-pairs", "scenes:web"],
    eval_dataset="scenes:test",
    reference="someone/reference",
    reference_revision="0123abc",
    steps=300,
    examples_trained=76800,
    examples_seen=384000,
    rows_skipped=12,
    unique_share=0.83,
    flops=StepFlops(training=3e15, scoring=5e15, selection=1e12),
    wall_time=3723.4,
    hardware="2 CPU cores",
    metrics={
        "eval_image_to_text_R@1": 0.41,
        "eval_zero_shot_accuracy": 0.7,
        "eval_loss": float("nan"),
        "eval_runtime": 3.0,
        "eval_samples_per_second": 33.0,
        "eval_examples_skipped": 2,
        "epoch": 1.0,
    },
    versions={"transformers": "5.23.0", "torch": "2.13.0"},
    license="apache-2.0",
    language=["en"],
)
UNIFORM = RunSummary(architecture="CLIPModel", selection="uniform", loss="softmax", filter_ratio=0.8, n_chunks=16)

SECTIONS = [
    r"^# someone/jest-tiny\n\nA `SiglipModel` dual encoder .*fine-tuned from google/siglip-base-patch16-224.*\(JEST\)",
    r"^It was trained on someone/web-pairs, scenes:web\.\n",
    r"^## Curation\n\n.*scored by the learner and a reference model.*\n.*drawn jointly, in chunks",
    r"^\| selection +\| joint +\|\n\| criterion +\| learnability .*\|\n\| reference +\| someone/reference@0123abc +\|",
    r"^\| filter ratio +\| 0\.8 +\|\n\| chunks +\| 16 +\|\n",
    r"^\| super-batch .*\| 1,280 +\|\n\| sub-batch .*\| 256 +\|\n",
    r"^\| loss +\| sigmoid +\|\n\| steps +\| 300 +\|\n",
    r"^\| examples trained on +\| 76,800 +\|\n\| examples seen +\| 384,000 +\|\n",
    r"^\| different examples .*\| 83\.0% +\|\n\| rows skipped .*\| 12 +\|\n",
    r"^## Compute\n\n(\|.*\n)+\| FLOPs, total +\| 8e\+15 +\|\n",
    r"^\| relative to IID .*\| 2\.67 +\|\n.*convention +\| plain",
    r"^\| training time +\| 3,723 s +\|\n\| hardware +\| 2 CPU cores +\|\n",
    r"^## Evaluation\n\nMeasured on scenes:test\.\n\n(\|.*\n){2}",
    r"^\| image_to_text_R@1 +\| +0\.41 \|\n\| zero_shot_accuracy +\| +0\.7 \|\n\n",
    r"^## How to use\n\n```python\n(.*\n)+?```\n",
    r"^## Limitations\n\n(- .*\n)+\n",
    r"^## Citations\n\n```bibtex\n@article\{evans2024jest(.*\n)+?.*2406\.17711(.*\n)+?.*2303\.15343(.*\n)+?```\n\n",
    r"^Made with transformers 5\.23\.0, torch 2\.13\.0\.\n?\Z",
]


def test_sections_in_order():
    text, position = learner_card(JOINT).content, 0
    for pattern in SECTIONS:
        found = re.compile(pattern, re.MULTILINE).search(text, position)
        assert found, f"after {text[position : position + 80]!r} there is no {pattern!r}"
        position = found.end() - 1
    assert not re.search(r"\n{3}|N/A|None|{{|%}|runtime|nan", text)


def test_metadata_survives_the_round_trip(tmp_path):
    learner_card(JOINT).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.to_dict()["base_model"] == "google/siglip-base-patch16-224"
    assert data.datasets == ["someone/web-pairs"]  # a built-in set is nothing that the Hub could link to
    assert (data.library_name, data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    assert (data.license, data.language) == ("apache-2.0", ["en"])
    assert {"jest", "jest_hf", "data-curation"} <= set(data.tags)
    assert data.model_name == "someone/jest-tiny"
    results = {result.metric_type: (result.task_type, result.metric_value) for result in data.eval_results}
    assert results == {
        "image_to_text_R@1": ("image-text-retrieval", 0.41),
        "zero_shot_accuracy": ("zero-shot-image-classification", 0.7),
    }
    assert {result.dataset_name for result in data.eval_results} == {"scenes:test"}


def test_the_reference_has_a_column_beside_the_model():
    of_reference = {"eval_image_to_text_R@1": 0.6, "eval_runtime": 3.0, "eval_other": 1.0}
    text = learner_card(replace(JOINT, reference_metrics=of_reference)).content
    assert re.search(r"^\| metric +\| +this model +\| its reference \|$", text, re.MULTILINE)
    assert re.search(r"^\| image_to_text_R@1 +\| +0\.41 +\| +0\.6 +\|$", text, re.MULTILINE)
    assert re.search(r"^\| zero_shot_accuracy +\| +0\.7 +\| +\|$", text, re.MULTILINE) and "| other" not in text


def test_the_split_of_the_evaluation_set():
    card = learner_card(replace(JOINT, eval_dataset="someone/pairs", eval_split="test"))
    assert "Measured on someone/pairs (split test).\n" in card.content
    assert {(one.dataset_type, one.dataset_split) for one in card.data.eval_results} == {("someone/pairs", "test")}


def test_iid_run_says_so_and_claims_no_selection():
    card = learner_card(UNIFORM)
    assert re.search(r"^## Curation\n\nNone: this is IID training\.", card.content, re.MULTILINE)
    assert not re.search("super-batch|chunks|filter ratio|reference|2406|## Compute|## Evaluation", card.content)
    assert "was not evaluated" in card.content
    assert not {"jest", "data-curation"} & set(card.data.tags)
    assert not re.search(r"\n{3}|N/A|None[^:]|{{|%}", card.content)


@pytest.mark.parametrize(
    ("criterion", "scorers", "inherits"),
    [
        ("learnability", "the learner and a reference model", True),
        ("easy_reference", "a reference model", True),
        ("hard_learner", "the learner itself", False),
    ],
)
def test_criterion_says_who_scored(criterion, scorers, inherits):
    text = learner_card(replace(JOINT, selection="independent", criterion=criterion)).content
    assert f"scored by {scorers}, and" in text and "by its own score" in text and "| chunks" not in text
    assert ("blind spots" in text) == inherits


def test_nothing_of_the_machine_leaks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "reference").mkdir(parents=True)
    here = str(tmp_path)
    summary = replace(
        JOINT,
        model_id=f"{here}/runs/first",
        base_model=f"{here}/weights/",
        datasets=[f"{here}/private/pairs.parquet"],
        eval_dataset=f"{here}/private/test.parquet",
        reference="out/reference",  # looks like a Hub id, and is a folder
    )
    card = learner_card(summary)
    assert here not in card.content and "out/reference" not in card.content and "hf_abc" not in card.content
    assert "pairs.parquet" in card.content
    assert "base_model" not in card.data.to_dict() and "datasets" not in card.data.to_dict()


def test_code_runs_as_pasted(tmp_path, monkeypatch, capsys):
    processor = build_processor(["a red square", "a blue circle"], image_size=16, vocab_size=300, max_length=8)
    model = build_siglip("tiny", processor.tokenizer, image_size=16, patch_size=8)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    learner_card(replace(JOINT, model_id=None)).save(tmp_path / "README.md")

    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})
    inputs = processor(
        images=Image.new("RGB", (256, 256), "red"),
        text=["a red square", "a blue circle"],
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    expected = AutoModel.from_pretrained(tmp_path).eval()(**inputs).logits_per_image.sigmoid()
    assert f"{expected[0, 0].item():.4e}" in capsys.readouterr().out


def test_text_length_and_softmax_reach_the_code():
    assert (
        'padding="max_length", max_length=64, truncation=True' in learner_card(replace(JOINT, text_length=64)).content
    )
    assert "padding=True, truncation=True" in learner_card(UNIFORM).content
    assert "logits.softmax(dim=-1)" in learner_card(UNIFORM).content


@pytest.mark.parametrize("wrong", [{"selection": "best"}, {"criterion": "easy"}])
def test_unknown_words_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*choose one of"):
        learner_card(replace(JOINT, **wrong))
