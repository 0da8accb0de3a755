# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Train, push, and use what was pushed elsewhere: in fresh processes with empty caches, through the served Hub."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from jest_hf.trainer import JESTTrainer
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.hub.test_pull import files_of, pull
from tests.trainers import arguments


EVALUATION_ROWS = random_rows(24, seed=5)
LABELS = ["a red square", "a blue circle", "a green star"]


def make(folder, *, model=None, reference=None, processor=None, lora=False, **changes):
    """A trainer of models that read 64 tokens: the pipeline pads the captions of every SigLIP to as many."""
    peft_config = None
    if lora:
        from peft import LoraConfig

        peft_config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    return JESTTrainer(
        model=model if model is not None else tiny_siglip(0, max_length=64),
        ref_model=reference if reference is not None else tiny_siglip(1, max_length=64),
        args=arguments(folder, **changes),
        train_dataset=random_rows(80),
        eval_dataset=EVALUATION_ROWS,
        processing_class=processor,
        peft_config=peft_config,
    )


def state_of(model):
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


# ---- What runs in fresh processes ----


def train_and_push(folder, repo, lora=False, base=None, **changes):
    processor = tiny_siglip_processor(max_length=64)
    trainer = make(folder, model=base, processor=processor, lora=lora, hub_model_id=repo, **changes)
    trainer.train()
    commit = trainer.push_to_hub(model_name="pushed", language="en")
    return {"commit": commit.oid, "state": state_of(trainer.model), "evaluation": metrics(trainer)}


def metrics(trainer):
    return {name: value for name, value in trainer.evaluate().items() if "R@" in name or name == "eval_loss"}


def use_elsewhere(folder, repo, commit):
    """All the ways in which somebody else uses a published learner."""
    from transformers import AutoModel, AutoProcessor, pipeline

    model, processor = AutoModel.from_pretrained(repo), AutoProcessor.from_pretrained(repo)
    used = {"class": type(model).__name__, "state": state_of(model)}
    classifier = pipeline("zero-shot-image-classification", repo)
    image = tiny_image()
    used["pipeline"] = {found["label"]: found["score"] for found in classifier(image, candidate_labels=LABELS)}
    inputs = processor(
        images=image,
        text=[f"This is a photo of {label}." for label in LABELS],
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        scores = model.eval()(**inputs).logits_per_image.sigmoid()[0]
    used["by hand"] = dict(zip(LABELS, scores.tolist(), strict=True))
    used["by embeddings"] = dict(zip(LABELS, scores_of_embeddings(model, inputs).tolist(), strict=True))
    used["evaluation"] = metrics(make(folder, model=model, processor=processor))
    trainer = make(folder, reference=repo, processor=processor, ref_model_revision=commit)
    trainer.train()
    used["as reference"] = {
        "commit": trainer.ref_model.config._commit_hash,
        "state": state_of(trainer.ref_model),
        "steps": trainer.state.global_step,
    }
    return used


def scores_of_embeddings(model, inputs):
    """As libraries of embeddings use a model: one tower at a time, vectors of length 1, and a dot product."""
    with torch.no_grad():
        image = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        text = model.get_text_features(input_ids=inputs["input_ids"]).pooler_output
        cosine = torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T
        return (cosine[0] * model.logit_scale.exp() + model.logit_bias).sigmoid()


def tiny_image():
    from PIL import Image

    return Image.open(io.BytesIO(EVALUATION_ROWS[0]["image"]["bytes"])).convert("RGB")


def train(folder, *, push=False, **changes):
    trainer = make(folder, processor=tiny_siglip_processor(max_length=64), push_to_hub=True, **changes)
    trainer.train()
    if push:
        trainer.push_to_hub()
    return {"state": state_of(trainer.model), "checkpoints": sorted(path.name for path in Path(folder).iterdir())}


# ---- Round trips ----


def same(left, right):
    return left.keys() == right.keys() and all((left[name] == right[name]).all() for name in left)


def test_round_trip(hub, client, tmp_path):
    pushed = client(train_and_push, str(tmp_path / "out"), "alice/learner").value
    assert hub.repo("alice/learner").head.oid == pushed["commit"]
    used = client(use_elsewhere, str(tmp_path / "other"), "alice/learner", pushed["commit"], home=tmp_path / "new")
    used = used.value
    assert used["class"] == "SiglipModel"
    assert same(used["state"], pushed["state"])
    assert used["evaluation"] == pushed["evaluation"]
    assert used["pipeline"] == pytest.approx(used["by hand"])
    assert used["by embeddings"] == pytest.approx(used["by hand"])
    assert (used["as reference"]["commit"], used["as reference"]["steps"]) == (pushed["commit"], 3)
    assert same(used["as reference"]["state"], pushed["state"])


def test_round_trip_by_xet(hub, client, tmp_path):
    hub.cas = tmp_path / "cas"
    settings = {"save_strategy": "steps", "save_steps": 1, "hub_strategy": "checkpoint", "push_to_hub": True}
    pushed = client(train_and_push, str(tmp_path / "out"), "alice/learner", xet=True, **settings).value
    assert not hub.asked("PUT")
    pulled = client(pull, "alice/learner", xet=True, home=tmp_path / "new").value
    assert pulled["commit"] == pushed["commit"] and same(pulled["state"], pushed["state"])


def test_round_trip_of_an_adapter(hub, client, tmp_path):
    hub.put("alice/base", files_of(tmp_path / "base", seed=0, max_length=64))
    pushed = client(train_and_push, str(tmp_path / "out"), "alice/adapter", lora=True, base="alice/base").value
    files = hub.repo("alice/adapter").head.files
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    used = client(use_elsewhere, str(tmp_path / "other"), "alice/adapter", pushed["commit"], home=tmp_path / "new")
    used = used.value
    assert used["evaluation"] == pushed["evaluation"]
    assert used["pipeline"] == pytest.approx(used["by hand"])
    assert used["by embeddings"] == pytest.approx(used["by hand"])
    for state in (used["state"], used["as reference"]["state"]):
        trained = {name.split("base_model.model.")[-1]: value for name, value in pushed["state"].items()}
        assert same(state, trained)
    assert used["as reference"]["commit"] == pushed["commit"]


def test_a_published_learner_is_what_it_says(hub, client, tmp_path):
    client(train_and_push, str(tmp_path / "out"), "alice/learner")
    files = hub.repo("alice/learner").head.files
    assert {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "README.md"} <= set(files)
    assert files["model.safetensors"].lfs and not files["README.md"].lfs
    assert b"pipeline_tag: zero-shot-image-classification" in files["README.md"].data
    assert not [path for path in files if path.startswith(("checkpoint-", "_"))]


# ---- While training ----


@pytest.mark.parametrize(
    ("strategy", "folders", "titles"),
    [
        ("end", set(), set()),
        ("every_save", set(), {"Training in progress, step 2"}),
        ("checkpoint", {"last-checkpoint"}, {"Training in progress, step 2, checkpoint"}),
        ("all_checkpoints", {"checkpoint-1", "checkpoint-2"}, {"Training in progress, step 2, checkpoint"}),
    ],
)
def test_strategies(hub, client, tmp_path, strategy, folders, titles):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "hub_always_push": True}
    outcome = client(train, str(tmp_path / "out"), hub_model_id="alice/run", hub_strategy=strategy, **settings)
    assert "failed" not in outcome.log
    repo = hub.repo("alice/run")
    assert {path.split("/")[0] for path in repo.head.files if "/" in path} == folders
    assert titles <= {commit.title for commit in repo.history(repo.head)}
    assert ("model.safetensors" in repo.head.files) == (strategy != "end")


def test_saving_by_hand_pushes_too(hub, client, tmp_path):
    client(save_by_hand, str(tmp_path / "out"))
    assert hub.repo("alice/out").head.title == "Model save"


def save_by_hand(folder):
    make(folder, processor=tiny_siglip_processor(max_length=64), push_to_hub=True).save_model()


def test_private_and_branches(hub, client, tmp_path):
    client(train, str(tmp_path / "out"), hub_private_repo=True, push=True)
    assert hub.repo("alice/out").private
    repo = hub.repo("alice/out")
    repo.branches["dev"] = repo.head.oid
    before = repo.head.oid
    client(train, str(tmp_path / "out"), hub_revision="dev", max_steps=1, push=True)
    assert repo.head.oid == before != repo.branches["dev"]


# ---- Tokens ----


def test_tokens_are_nowhere(hub, client, tmp_path):
    """In no file that is pushed or kept, in no log; and no machine but the endpoint was asked for anything."""
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "hub_strategy": "all_checkpoints"}
    outcome = client(train, str(tmp_path / "out"), hub_token="hf_alice_writes", push=True, **settings, token=None)
    assert "hf_alice" not in outcome.log
    pushed = {path for path, blob in hub.repo("alice/out").head.files.items() if b"hf_alice" in blob.data}
    assert not pushed
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_alice" in path.read_bytes()]
    for request in hub.requests:
        assert request.host == "127.0.0.1" and "hf_alice" not in request.target
        assert request.token == (None if request.path.startswith("/_lfs/") else "hf_alice_writes")
