# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Cards on the served Hub: accepted by its validation, their code run as pasted, and words that were written there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from jest_hf.data import load_source
from jest_hf.hub import curated_card, learner_card, push_card, reference_cache_card
from jest_hf.reference import push_reference_cache
from tests.hub.test_cards_datasets import CURATED, python_of, run
from tests.hub.test_model_card import JOINT
from tests.hub.test_publisher import make
from tests.hub_server import Failed
from tests.reference.caching import make_cache


# ---- What runs in fresh processes ----


def publish_reference(folder, repo):
    from tests.helpers import tiny_siglip_processor

    processor = tiny_siglip_processor(max_length=64)
    trainer = make(folder, processor=processor, selection="uniform", hub_model_id=repo, push_to_hub=True)
    trainer.train()
    trainer.evaluate()
    trainer.push_to_hub(role="reference", dataset=["alice/curated", "scenes:curated"], license="mit")


def publish_cache(folder, repo):
    cache = make_cache(folder, load_source("scenes:test", max_rows=60), batch_size=20)
    push_reference_cache(folder, repo)
    push_card(reference_cache_card(cache.manifest, repo, dataset="scenes:test", max_rows=60), repo)


def publish_curated(repo):
    load_source("scenes:curated", max_rows=5).push_to_hub(repo)
    return push_card(curated_card(CURATED), repo)


def paste(kind, repo, folder):
    """Run all the code of a published card in an empty folder."""
    from huggingface_hub import DatasetCard, ModelCard

    os.makedirs(folder)
    os.chdir(folder)
    codes = python_of({"model": ModelCard, "dataset": DatasetCard}[kind].load(repo))
    for code in codes:
        run(code)
    return len(codes)


def validate(cards):
    for card in cards:
        card.validate()


def add_words(repo, kind, old, new):
    from huggingface_hub import HfApi, hf_hub_download

    text = Path(hf_hub_download(repo, "README.md", repo_type=kind)).read_text()
    assert old in text
    edited = text.replace(old, new, 1).encode()
    HfApi().upload_file(path_or_fileobj=edited, path_in_repo="README.md", repo_id=repo, repo_type=kind)


# ---- Tests ----


def readme(hub, repo, kind="models"):
    return hub.repo(repo, kind).head.files["README.md"].data.decode()


def test_a_reference(hub, client, tmp_path):
    client(publish_reference, str(tmp_path / "out"), "alice/reference")
    text = readme(hub, "alice/reference")
    assert "# alice/reference\n" in text and 'ref_model="alice/reference"' in text and "license: mit" in text
    assert hub.asked("POST", "/api/validate-yaml")
    pasted = client(paste, "model", "alice/reference", str(tmp_path / "elsewhere"), home=tmp_path / "new")
    assert pasted.value == 2 and "train_runtime" in pasted.log


def test_a_curated_set(hub, client, tmp_path):
    commit = client(publish_curated, "alice/curated").value
    assert hub.repo("alice/curated", "datasets").head.oid == commit
    text = readme(hub, "alice/curated", "datasets")
    assert "dataset_info:" in text and "configs:" in text and "## Curation" in text
    pasted = client(paste, "dataset", "alice/curated", str(tmp_path / "elsewhere"), home=tmp_path / "new")
    assert "num_rows: 5" in pasted.log


def test_words_that_were_written_on_the_hub_stay(hub, client, tmp_path):
    client(publish_curated, "alice/curated")
    client(add_words, "alice/curated", "dataset", "## Limitations", "Look out.\n\n## Limitations")
    client(add_words, "alice/curated", "dataset", "<!-- jest_hf:citations", "## Thanks\n\n<!-- jest_hf:citations")
    client(add_words, "alice/curated", "dataset", "license: cc-by-4.0", "license: mit")
    client(publish_curated, "alice/curated")
    text = readme(hub, "alice/curated", "datasets")
    assert "Look out." in text and "## Thanks" in text and "license: mit" in text
    before = len(hub.asked("POST", "/commit/"))
    client(push_card, curated_card(CURATED), "alice/curated")
    assert len(hub.asked("POST", "/commit/")) == before


def test_a_card_that_cannot_be_read_is_not_written_over(hub, client, tmp_path):
    client(publish_curated, "alice/curated")
    client(add_words, "alice/curated", "dataset", "## Limitations", "Look out.\n\n## Limitations")
    hub.fail("HEAD", "/resolve/main/README.md", times=100, status=503)
    with pytest.raises(Failed):
        client(push_card, curated_card(CURATED), "alice/curated", home=tmp_path / "new")
    assert "Look out." in readme(hub, "alice/curated", "datasets")


def test_a_cache(hub, client, tmp_path):
    client(publish_cache, str(tmp_path / "cache"), "alice/cache")
    text = readme(hub, "alice/cache", "datasets")
    assert "# alice/cache\n" in text and 'reference_cache="alice/cache"' in text and "viewer: false" in text
    pasted = client(paste, "dataset", "alice/cache", str(tmp_path / "elsewhere"), home=tmp_path / "new")
    assert pasted.value == 2 and "60 rows of width 32" in pasted.log and "train_runtime" in pasted.log


def test_the_clients_own_validation(hub, client, tmp_path):
    manifest = make_cache(tmp_path / "cache").manifest
    cards = [learner_card(JOINT), reference_cache_card(manifest, "alice/cache"), curated_card(CURATED)]
    client(validate, cards)
    assert len(hub.asked("POST", "/api/validate-yaml")) == 3
    cards[0].data.license = "mine"
    with pytest.raises(Failed, match=re.escape("license")):
        client(validate, cards[:1])
