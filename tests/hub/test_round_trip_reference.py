# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""References from the Hub other than a model that is loaded whole: adapters, and caches that are checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jest_hf.models.adapters import REFERENCE_ADAPTER
from jest_hf.reference import describe_reference, identify_reference, open_cache
from jest_hf.trainer import JESTTrainer
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.hub.test_one_commit import adapter_files
from tests.hub.test_pull import files_of
from tests.hub_server import Failed
from tests.reference.caching import make_cache, reference_model
from tests.trainers import arguments


ROWS = 23


@pytest.fixture
def adapter(hub, tmp_path):
    """Puts `alice/adapter` on the Hub; its commit."""
    hub.put("alice/base", files_of(tmp_path / "base", seed=1))
    return hub.put("alice/adapter", adapter_files(tmp_path / "adapter", "alice/base", seed=3))


# ---- What runs in fresh processes ----


def trainer_of(folder, *, ref_model=None, ref_processor=None, lora=False, **changes):
    peft_config = None
    if lora:
        from peft import LoraConfig

        peft_config = LoraConfig(r=2, target_modules=["v_proj"])
    return JESTTrainer(
        model=tiny_siglip(1),
        ref_model=ref_model,
        args=arguments(folder, **changes),
        train_dataset=random_rows(ROWS),
        processing_class=tiny_siglip_processor(),
        ref_processing_class=ref_processor,
        peft_config=peft_config,
    )


def train_against_adapter(folder, name="alice/adapter", revision=None, **changes):
    settings = {"reference": "adapter", "per_device_train_batch_size": 4, "filter_ratio": 0.5, **changes}
    trainer = trainer_of(folder, ref_model=name, lora=True, ref_model_revision=revision, **settings)
    weights = {
        key: value.detach().numpy().copy()
        for key, value in trainer.model.state_dict().items()
        if f".{REFERENCE_ADAPTER}." in key
    }
    trainer.train()
    trainer.create_model_card()
    manifest = Path(folder) / "reference_cache" / "manifest.json"
    return {
        "weights": weights,
        "name": trainer.reference.name,
        "commit": trainer.reference.commit,
        "steps": trainer.state.global_step,
        "card": (Path(folder) / "README.md").read_text(),
        "cached": json.loads(manifest.read_text())["reference"] if manifest.exists() else None,
    }


def describe(name, revision=None):
    return identify_reference(name, revision)


def check(folder, cache, name=None, *, ref_processor=None, **changes):
    """A run that is given a cache, and told of the reference that it should be of."""
    settings = {"reference_cache": cache, "per_device_train_batch_size": 4, "filter_ratio": 0.5, **changes}
    trainer = trainer_of(folder, ref_model=name, ref_processor=ref_processor, **settings)
    assert set(trainer.data_collator.geometries) == {""}  # nothing is read for a reference that is not there
    return trainer.reference.commit


# ---- Adapters ----


@pytest.mark.parametrize("cached", [False, True])
def test_an_adapter_is_the_reference_at_the_commit_that_is_recorded(hub, client, tmp_path, adapter, cached):
    later = adapter_files(tmp_path / "later", "alice/base", seed=4)
    second = hub.put("alice/adapter", later)
    first = client(train_against_adapter, str(tmp_path / "first"), revision=adapter, cache_reference=cached).value
    newest = client(train_against_adapter, str(tmp_path / "newest"), cache_reference=cached).value
    for run, commit in ((first, adapter), (newest, second)):
        assert (run["name"], run["commit"], run["steps"]) == ("alice/adapter", commit, 3)
        assert f"alice/adapter@{commit}" in run["card"]
        assert run["weights"]
        if cached:
            assert (run["cached"]["repo"], run["cached"]["commit"]) == ("alice/adapter", commit)
    assert any((first["weights"][name] != newest["weights"][name]).any() for name in first["weights"])


def test_an_adapter_is_verified_and_mended(hub, client, tmp_path, adapter):
    hub.fail("GET", r"^/_cdn/", corrupt=True)
    outcome = client(train_against_adapter, str(tmp_path / "out"))
    assert "the copy of adapter_model.safetensors" in outcome.log and "downloading it again" in outcome.log
    clean = client(train_against_adapter, str(tmp_path / "clean"), home=tmp_path / "new").value["weights"]
    assert all((outcome.value["weights"][name] == value).all() for name, value in clean.items())


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("alice/none", "OSError", "ref_model='alice/none' is neither a folder nor a repository of http://127"),
        (
            "alice/base",
            "ValueError",
            "reference='adapter' needs an adapter, and ref_model='alice/base' has no adapter_",
        ),
        ("alice/pickle", "OSError", "ref_model='alice/pickle' has no weights in safetensors"),
    ],
)
def test_what_is_no_adapter_is_refused(hub, client, tmp_path, adapter, name, kind, words):
    files = {path: blob.data for path, blob in hub.repo("alice/adapter").head.files.items()}
    files["adapter_model.bin"] = files.pop("adapter_model.safetensors")
    hub.put("alice/pickle", files)
    with pytest.raises(Failed) as failed:
        client(train_against_adapter, str(tmp_path / "out"), name)
    assert failed.value.kind == kind and words in str(failed.value) and "\n" not in str(failed.value)


def test_an_adapter_is_identified_with_its_base(hub, client, tmp_path, adapter):
    base = hub.repo("alice/base").head.oid
    known = client(describe, "alice/adapter").value
    assert known == {
        "repo": "alice/adapter",
        "commit": adapter,
        "base": {"repo": "alice/base", "commit": base},
    }
    assert not hub.asked("GET", "/_cdn/")  # no weights are needed for that
    hub.put("alice/base", files_of(tmp_path / "other", seed=2))
    assert client(describe, "alice/adapter").value["base"] != known["base"]


# ---- A cache that is given, and the reference that it should be of ----


@pytest.fixture
def cache(hub, client, tmp_path):
    """A cache of `alice/reference` and its commit, which reads 24 px where the learner reads 16."""
    commit = hub.put("alice/reference", files_of(tmp_path / "reference", image_size=24))
    made = make_cache(
        tmp_path / "cache",
        random_rows(ROWS),
        model=reference_model(build=lambda seed: tiny_siglip(seed, 24)),
        processor=tiny_siglip_processor(24),
        reference={"repo": "alice/reference", "commit": commit},
    )
    open_cache(made.folder).verify()
    return str(made.folder)


def test_a_cache_of_the_named_reference_is_taken_without_loading_it(hub, client, tmp_path, cache):
    commit = hub.repo("alice/reference").head.oid
    assert client(check, str(tmp_path / "out"), cache, "alice/reference").value == commit
    assert client(check, str(tmp_path / "out"), cache, "alice/reference", ref_model_revision=commit).value == commit
    assert client(check, str(tmp_path / "out"), cache, str(tmp_path / "reference")).value == commit
    assert not hub.asked("GET", "/_cdn/")


def other_reference(hub, tmp_path):
    hub.put("alice/reference", files_of(tmp_path / "second", seed=2, image_size=24))


def other_size(hub, tmp_path):
    """The same weights at the same commit, with another processor beside them: of a folder."""
    tiny_siglip_processor(32).save_pretrained(tmp_path / "reference")


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (other_reference, {"name": "alice/reference"}, "reference.commit was"),
        (None, {"name": tiny_siglip(2)}, "reference.weights was"),
        (
            None,
            {"ref_processor": tiny_siglip_processor(32)},
            "reading.image.size was [24, 24], and in this run it is [32, 32]",
        ),
        (None, {"ref_processor": tiny_siglip_processor(24, 6)}, "reading.max_length was 8, and in this run it is 6"),
        (other_size, {"name": "reference"}, "reading.image.size was [24, 24], and in this run it is [32, 32]"),
    ],
    ids=["commit", "weights", "image size", "text length", "stored processor"],
)
def test_a_cache_of_something_else_is_refused_by_name(hub, client, tmp_path, cache, change, options, words):
    if change is not None:
        change(hub, tmp_path)
    if options.get("name") == "reference":
        options = {"name": str(tmp_path / "reference")}
    with pytest.raises(Failed) as failed:
        client(check, str(tmp_path / "out"), cache, **options)
    message = str(failed.value)
    assert failed.value.kind == "ValueError" and "\n" not in message
    assert "does not match this run: " in message and words in message, message


def test_a_run_that_names_no_reference_takes_the_cache_as_it_is(client, tmp_path, cache):
    client(check, str(tmp_path / "out"), cache)


def describe_without_processor(folder):
    from jest_hf import JESTDataCollator

    collator = JESTDataCollator(tiny_siglip_processor(), tiny_siglip_processor(24))
    return describe_reference(folder, None, None, collator)


def test_a_collator_that_has_the_references_processor_needs_no_other(client, tmp_path):
    tiny_siglip(1, 24).save_pretrained(tmp_path / "bare")
    described = client(describe_without_processor, str(tmp_path / "bare")).value
    assert described["reading"]["image"]["size"] == (24, 24)
    assert described["reference"] == identify_reference(tiny_siglip(1, 24))
