# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A curated data set on the Hub: pushed, loaded back, and kept on the disk where the Hub refuses."""

from __future__ import annotations

import datasets
import pytest

from jest_hf.curation import curate_dataset
from tests.curation.scored import pairs, score
from tests.hub_server import Failed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scores of 50 pairs, and the pairs as a file."""
    path = tmp_path_factory.mktemp("scored")
    pairs().to_parquet(path / "pairs.parquet")
    rows = datasets.load_dataset("parquet", data_files=str(path / "pairs.parquet"), split="train")
    score(path / "scores", rows, source={"spec": str(path / "pairs.parquet")})
    return path


# ---- What runs in fresh processes ----


def push(folder, output, keep=0.3, repo="alice/curated", **options):
    return curate_dataset(folder + "/scores", output, keep=keep, push_to_hub=repo, **options).commit


def load(repo="alice/curated"):
    rows = datasets.load_dataset(repo, split="train").cast_column("image", datasets.Image(decode=False))
    return [(row["pool_row"], row["image"]["bytes"], row["text"]) for row in rows]


# ---- There and back ----


def test_there_and_back(hub, client, tmp_path, folder):
    commit = client(push, str(folder), str(tmp_path / "out"), license="cc-by-4.0").value
    repo = hub.repo("alice/curated", "datasets")
    assert repo.head.oid == commit
    card = repo.head.files["README.md"].data.decode()
    assert "license: cc-by-4.0" in card and 'load_dataset("alice/curated", split="train")' in card
    before = pairs().cast_column("image", datasets.Image(decode=False))
    rows = client(load, home=tmp_path / "new").value
    assert len(rows) == 15
    for number, content, text in rows:
        assert (content, text) == (before[number]["image"]["bytes"], before[number]["text"])


def test_another_rule_replaces_the_files(hub, client, tmp_path, folder):
    client(push, str(folder), str(tmp_path / "one"), format="webdataset")
    client(push, str(folder), str(tmp_path / "two"), keep=0.5)
    files = [path for path in hub.repo("alice/curated", "datasets").head.files if path.startswith("data/")]
    assert files == ["data/train-00000-of-00001.parquet"]
    assert len(client(load, home=tmp_path / "new").value) == round(0.5 * 49)


def test_a_hub_that_refuses_loses_nothing(hub, client, tmp_path, folder):
    with pytest.raises(Failed, match=r"the push of the curated data set to 'bob/curated' failed .* is kept, so"):
        client(push, str(folder), str(tmp_path / "out"), repo="bob/curated")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "data"}
    with pytest.raises(Failed, match="is the data set that is curated; name another repository"):
        client(push, str(folder), str(tmp_path / "other"), repo="alice/pairs", source={"spec": "alice/pairs"})
    assert not (tmp_path / "other").exists()
