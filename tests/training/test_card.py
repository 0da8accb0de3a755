# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Cards of real runs: the whole of one against a pattern, and what others say of their reference and their code."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from transformers import AutoModel

from jest_hf import JESTDataCollator, JESTTrainer
from jest_hf.data import build_processor, load_source
from jest_hf.hub import RunSummary, learner_card, reference_card, run_card
from jest_hf.models import build_siglip
from jest_hf.training.card import summarise_run, write_run_card
from tests.helpers import random_rows, tiny_clip, tiny_clip_processor, tiny_siglip, tiny_siglip_processor
from tests.hub.test_cards_datasets import python_of, run
from tests.hub.test_model_card import JOINT
from tests.hub_server.cards import problems
from tests.reference.caching import make_cache
from tests.trainers import arguments, make_trainer


# A card's text in which `<word>` stands for what differs between two runs or machines.
PATTERN = Path(__file__).parent / "learner_card.pattern.md"
PLACEHOLDERS = {
    "number": r"[-+]?\d[\d,.]*(?:e[-+]\d+)?",
    "version": r"\d[\w.+]*",
    "digests": r"[0-9a-f]{8}(?: [0-9a-f]{8})*",
    "hardware": r"CPU \(\w+, \d+ cores\)|\d+ x .+",
}


def unpadded(text):
    """Without what lines up the columns of tables, which depends on the figures."""
    lines = (re.sub(r" +", " ", line) if line.startswith("|") else line for line in text.split("\n"))
    return re.sub(r"-{3,}(:?) \|", r"---\1 |", "\n".join(lines))


def trained(folder, **options):
    trainer = make_trainer(folder, **options)
    trainer.train()
    return trainer


def summary_of(trainer, **about):
    return summarise_run(trainer.facts, **about)


def test_the_card_of_a_run_is_the_pattern(tmp_path):
    trainer = make_trainer(
        tmp_path,
        rows=load_source("scenes:web", max_rows=80),
        options={"eval_dataset": load_source("scenes:test", max_rows=8)},
    )
    trainer.train()
    trainer.evaluate()
    write_run_card(
        trainer.facts, dataset="scenes:web", eval_dataset="scenes:test", license="apache-2.0", language="en"
    )
    pattern = re.escape(unpadded(PATTERN.read_text()))
    for name, expression in PLACEHOLDERS.items():
        pattern = pattern.replace(f"<{name}>", f"(?:{expression})")
    expected, written = pattern.split("\\\n"), unpadded((tmp_path / "README.md").read_text()).split("\n")
    for line, wanted in zip(written, expected, strict=False):
        assert re.fullmatch(wanted, line), f"{line!r} is not {wanted!r}"
    assert len(written) == len(expected)
    with Image.open(tmp_path / "selection.png") as plot:
        assert min(plot.size) > 300


@pytest.mark.parametrize("scaled", [False, True])
def test_scaled_jpeg_decoding_is_in_the_card(tmp_path, scaled):
    collator = JESTDataCollator(tiny_siglip_processor(), scaled_jpeg_decoding=scaled)
    summary = summary_of(make_trainer(tmp_path, options={"data_collator": collator}))
    assert summary.scaled_jpeg_decoding == scaled
    row = r"\| JPEG decoding +\| at 1/2, 1/4 or 1/8 of large images' size"
    assert (re.search(row, run_card(summary).content) is not None) == scaled


def test_metadata_of_a_run_are_what_the_hub_takes(tmp_path):
    trainer = trained(tmp_path, options={"eval_dataset": random_rows(8)})
    trainer.evaluate()
    card = run_card(summary_of(trainer, license="mit", tags="birds", language=["en", "de"], dataset="some/pairs"))
    data = card.data.to_dict()
    assert problems(data, "model") == []
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "SiglipModel" and {"R@1", "loss"} <= {result.metric_type for result in results}
    assert ModelCardData(**data).to_dict() == data
    assert ModelCard(card.content).data.to_dict() == data and "birds" in data["tags"]


def test_the_validator_of_the_tests_can_refuse():
    good = learner_card(JOINT).data.to_dict()
    assert problems(good, "model") == []
    for name, bad in {
        "license": "mine",
        "base_model": "/home/me/model",
        "tags": "jest",
        "pipeline_tag": "magic",
        "datasets": ["a/b/c"],
        "language": "English",
        "model-index": [{"name": "x", "results": [{"task": {"type": "t"}, "metrics": [{"type": "m"}]}]}],
    }.items():
        assert len(problems(good | {name: bad}, "model")) == 1, name


def test_a_card_is_written_at_any_time_and_never_twice(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.create_model_card()
    early = (tmp_path / "README.md").read_text()
    assert "| steps " in early and "selection.png" not in early and "unique" not in early
    (tmp_path / "README.md").write_text(early + "\n## Mine\n\nMy words.\n")
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "My words." in text and text.count("## Curation") == 1 and "![Selected" in text
    assert re.search(r"\| steps +\| 3 +\|", text)


def test_the_reference_by_its_commit(tmp_path):
    trainer = make_trainer(tmp_path, reference=tiny_siglip(1))
    trainer.ref_model.config._name_or_path, trainer.ref_model.config._commit_hash = "someone/reference", "0123abc"
    assert re.search(r"\| reference +\| someone/reference@0123abc +\|", run_card(summary_of(trainer)).text)


def test_the_reference_of_a_cache(tmp_path):
    rows = random_rows(80)
    manifest = make_cache(tmp_path / "cache", rows, shard_rows=32).manifest
    settings = {"reference_cache": str(tmp_path / "cache")}
    text = run_card(summary_of(make_trainer(tmp_path, rows=rows, **settings))).text
    weights = manifest["reference"]["weights"][:12]
    assert re.search(rf"\| reference +\| weights of sha256 {weights} +\|", text)
    assert re.search(r"\| reference embeddings read from +\| cache +\|", text)
    assert "scoring by the reference" not in text and str(tmp_path) not in text


def test_a_reference_that_is_the_learners_backbone(tmp_path):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = tiny_siglip(0)
    model.config._name_or_path = "someone/base"
    trainer = JESTTrainer(
        model,
        arguments(tmp_path, reference="adapter"),
        train_dataset=random_rows(80),
        processing_class=tiny_siglip_processor(),
        peft_config=lora,
    )
    card = run_card(summary_of(trainer))
    assert re.search(r"\| reference +\| the learner's backbone, someone/base +\|", card.text)
    assert (card.data.library_name, card.data.base_model) == ("peft", "someone/base")
    assert "`SiglipModel` dual encoder of images and texts, an adapter on someone/base" in card.text
    assert "This is an adapter" in card.text and "cannot be loaded" not in card.text and "peft 0." in card.text
    private = replace(summary_of(trainer), base_model=str(tmp_path))
    assert "without it, this adapter cannot be loaded" in learner_card(private).text


def test_metrics_are_those_of_the_weights(tmp_path):
    trainer = trained(
        tmp_path,
        options={"eval_dataset": random_rows(8)},
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # which makes the model of the first step the best
    )
    best = trainer.state.best_global_step
    assert best < 3
    summary = summary_of(trainer)
    assert summary.metrics["eval_loss"] == trainer.state.best_metric and summary.evaluated_at == best
    assert f"the evaluation set of the run, after step {best}." in run_card(summary).text
    measured = trainer.evaluate()
    assert summary_of(trainer).metrics["eval_loss"] == measured["eval_loss"]


def test_flexi_runs_tell_of_their_view(tmp_path):
    text = run_card(summary_of(make_trainer(tmp_path, scoring_view="patch:16"))).text
    assert re.search(r"\| view at which the learner scored +\| patch:16 +\|\n\| share .* \| 50\.0% +\|", text)


def test_rates_by_source_and_plot():
    sources = {"/data/web": (30, 100), "curated": (45, 50), "none": (0, 0)}
    text = learner_card(replace(JOINT, sources=sources, plot="selection.png")).text
    table = text[text.index("| source ") :].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert cells == [["web", "100", "30", "30.0%"], ["curated", "50", "45", "90.0%"], ["none", "0", "0", ""]]
    assert "\n\n![Selected against rejected examples](selection.png)\n\n## Compute" in text
    uniform = learner_card(replace(JOINT, sources=sources, selection="uniform")).text
    assert "| source " in uniform and "| rate" not in uniform


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"selection": "top_k"}, ["highest scores", "by its own score"]),
        (
            {"selection": "independent", "proxy": True},
            ["by a small proxy of the learner (trained beside it) and a reference model, and"],
        ),
        ({"online_reference": True}, ["the learner and a reference model (trained beside the learner), and"]),
        ({"criterion": "hard_learner"}, ["scored by the learner itself, and"]),
        (
            {"criterion": "hard_learner", "proxy": True},
            ["scored by a small proxy of the learner (trained beside it), and"],
        ),
        ({"preset": "active_clip", "pair_score": "similarity"}, ["| active_clip ", "| similarity "]),
        ({"flops_convention": "paper"}, ["| the paper's ("]),
        ({"gain": 2.0}, ["| 2.0 "]),
    ],
)
def test_other_ways_to_select(change, words):
    text = learner_card(replace(JOINT, **change)).text
    assert all(word in text for word in words), text
    assert not re.search(r"\n{3}|None|,,", text)


@pytest.mark.parametrize(
    ("architecture", "task", "code"),
    [
        ("ViTForImageClassification", "image-classification", "print(model(Image.new("),
        ("BertForSequenceClassification", "text-classification", 'print(model("A red square."))'),
        ("GPT2LMHeadModel", "text-generation", 'print(model("A red"))'),
        ("LlamaForCausalLM", "text-generation", 'print(model("A red"))'),
    ],
)
def test_models_of_labels(architecture, task, code):
    summary = replace(JOINT, architecture=architecture, loss="cross-entropy", selection="top_k")
    for card in (learner_card(summary), reference_card(summary)):
        assert (card.data.pipeline_tag, {result.task_type for result in card.data.eval_results}) == (task, {task})
        assert len(python_of(card)) == 1 and code in card.text and f'pipeline("{task}"' in card.text
        assert "dual encoder" not in card.text and "contrastive" not in card.data.tags
        assert not re.search(r"\n{3}", card.text)


@pytest.mark.parametrize(("name", "value"), [("role", "teacher"), ("flops_convention", "mine")])
def test_unknown_words_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}='{value}' is not known: choose one of"):
        run_card(replace(JOINT, **{name: value}))


def test_the_code_of_a_reference_runs_as_pasted(tmp_path, monkeypatch, capsys):
    rows = load_source("scenes:curated", max_rows=64)
    processor = build_processor(rows["caption"], image_size=16, max_length=8)
    trainer = trained(
        tmp_path,
        model=build_siglip("tiny", processor.tokenizer, image_size=16, patch_size=8),
        rows=rows,
        processor=processor,
        selection="uniform",
    )
    trainer.save_model()
    trainer.create_model_card(role="reference", dataset="scenes:curated")
    monkeypatch.chdir(tmp_path)
    card = ModelCard.load("README.md")
    assert {"jest", "jest-reference"} <= set(card.data.tags) and "trained on alike (IID)" in card.text
    assert "made to be the reference of JEST runs" in card.text and "data-curation" not in card.data.tags
    first, second = python_of(card)
    run(first)
    run(second)
    assert "'examples_seen': 400, 'examples_trained': 80" in capsys.readouterr().out
    assert isinstance(AutoModel.from_pretrained("."), type(trainer.model))


def test_the_code_of_a_clip_learner_runs_as_pasted(tmp_path, monkeypatch, capsys):
    model, processor = tiny_clip(), tiny_clip_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    (code,) = python_of(learner_card(RunSummary("CLIPModel", "joint", "softmax")))
    run(code)
    assert "tensor([[" in capsys.readouterr().out
