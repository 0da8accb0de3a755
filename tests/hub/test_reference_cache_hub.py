# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A reference cache on the Hub: pushed once, and used by runs that have nothing of the reference."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch

from jest_hf.reference import identify_reference, open_cache, push_reference_cache
from jest_hf.report import read_selections
from jest_hf.trainer import JESTTrainer
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.hub.moving import Moving
from tests.hub.test_pull import files_of
from tests.hub_server import Failed
from tests.reference.caching import contents, make_cache, reference_model
from tests.trainers import arguments


N_ROWS, SHARDS = 80, 5
BUSY = {"status": 503, "headers": {"Retry-After": "1"}}


def keyed_rows():
    """Rows that a stream of them can be told by, in names of their own."""
    names = [11 * ((7 * index) % N_ROWS) for index in range(N_ROWS)]
    return datasets.Dataset.from_list(random_rows(N_ROWS)).add_column("example_id", names)


@pytest.fixture
def folder(tmp_path):
    """A cache of `keyed_rows`, in five shards."""
    make_cache(tmp_path / "cache", keyed_rows(), shard_rows=16, batch_size=8)
    return tmp_path / "cache"


# ---- What runs in fresh processes ----


def push(folder, repo="alice/cache", **options):
    return push_reference_cache(folder, repo, **options)


def look_up(revision=None, repo="alice/cache", **options):
    """Everything that is in a cache, after reading it from the Hub."""
    cache = open_cache(repo, revision, **options)
    found = cache.take(torch.arange(cache.n_rows))
    files = {path.name: path.read_bytes() for path in cache.folder.iterdir()}
    return {"commit": cache.folder.name, "image": found.image.numpy(), "text": found.text.numpy(), "files": files}


def train(folder, *, cache=None, revision=None, streamed=False, reference=None, processor=None):
    """Which examples a run selects, in order; of a live reference, or with a cache in its place."""
    rows = keyed_rows()
    trainer = JESTTrainer(
        model=tiny_siglip(0),
        ref_model=reference,
        args=arguments(folder, reference_cache=cache, reference_cache_revision=revision, record_selection=True),
        train_dataset=rows.to_iterable_dataset(4).shuffle(seed=3, buffer_size=40) if streamed else rows,
        processing_class=processor or tiny_siglip_processor(),
    )
    trainer.train()
    assert (trainer.ref_model is None) == (cache is not None)
    return read_selections(Path(folder) / "selections.parquet").to_pylist()


def train_alive(folder, **options):
    return train(folder, reference=tiny_siglip(1), **options)


# ---- There and back ----


@pytest.mark.parametrize("xet", [False, True])
def test_there_and_back(hub, client, tmp_path, folder, xet):
    """In a fresh process with an empty cache; over either transport."""
    hub.cas = tmp_path / "cas" if xet else None
    commit = client(push, str(folder), xet=xet).value
    assert hub.repo("alice/cache", "datasets").head.oid == commit
    assert bool(hub.asked("PUT", "/_lfs/")) != xet
    found = client(look_up, home=tmp_path / "new", xet=xet).value
    assert found["commit"] == commit
    here = open_cache(folder).take(torch.arange(N_ROWS))
    assert (found["image"] == here.image.numpy()).all() and (found["text"] == here.text.numpy()).all()
    for path in folder.iterdir():
        assert found["files"][path.name] == path.read_bytes()
    assert bool(hub.asked("GET", "/_cdn/")) != xet


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_selects_from_a_pulled_cache_as_with_the_live_reference(hub, client, tmp_path, folder, streamed):
    """Also from a streamed copy of the data, whose rows are found by their own names."""
    client(push, str(folder))
    expected = client(train_alive, str(tmp_path / "live"), streamed=streamed).value
    options = {"cache": "alice/cache", "streamed": streamed, "home": tmp_path / "new"}
    hub.requests.clear()
    assert client(train, str(tmp_path / "cached"), **options).value == expected
    assert hub.asked("GET", "/api/datasets/alice/cache/")
    assert not [request for request in hub.requests if "/models/" in request.path]


def test_a_revision_pins_what_is_read(hub, client, tmp_path, folder):
    first = client(push, str(folder)).value
    other = make_cache(tmp_path / "other", keyed_rows(), model=reference_model(2), shard_rows=40)
    second = client(push, str(other.folder)).value
    assert first != second
    repo = hub.repo("alice/cache", "datasets")
    repo.tags["v1"] = first
    shards = [path for path in repo.head.files if path.startswith("shard-")]
    assert len(shards) == 2  # and none of the five is left over
    for revision, commit in ((None, second), ("v1", first), (first, first)):
        found = client(look_up, revision).value
        assert found["commit"] == commit
        expected = open_cache(folder if commit == first else other.folder).take(torch.arange(N_ROWS))
        assert (found["image"] == expected.image.numpy()).all()
    before = len(hub.requests)
    client(look_up, first)
    client(look_up, "v1", offline=True)
    assert len(hub.requests) == before


def test_an_unchanged_cache_makes_no_commit(hub, client, folder):
    commit = client(push, str(folder)).value
    n_commits = len(hub.repo("alice/cache", "datasets").commits)
    assert client(push, str(folder)).value == commit
    assert len(hub.repo("alice/cache", "datasets").commits) == n_commits


def test_it_has_a_card_in_which_words_of_the_owner_stay(hub, client, folder):
    client(push, str(folder), dataset="alice/pairs", license="mit")
    repo = hub.repo("alice/cache", "datasets")
    card = repo.head.files["README.md"].data.decode()
    assert "license: mit" in card and 'reference_cache="alice/cache"' in card and "alice/pairs" in card
    hub.put("alice/cache", {"README.md": (card + "\n## Thanks\n\nTo everybody.\n").encode()}, kind="datasets")
    client(push, str(folder), dataset="alice/pairs", license="apache-2.0")
    card = repo.head.files["README.md"].data.decode()
    assert "license: apache-2.0" in card and "To everybody." in card
    assert not (folder / "README.md").exists()


def cache_by_command(rows, folder):
    from jest_hf.cli import main

    main(["cache-reference", "--ref_model", "alice/reference", "--dataset", rows, "--output_dir", folder])
    push_reference_cache(folder, "alice/cache")
    return json.loads((Path(folder) / "manifest.json").read_text())["reference"]


def test_the_command_records_the_commit_that_it_loaded(hub, client, tmp_path):
    """And not that of a push while it loads."""
    commit = hub.put("alice/reference", files_of(tmp_path / "reference", seed=1))
    Moving(hub, {"alice/reference": [files_of(tmp_path / "other", seed=2)]})
    datasets.Dataset.from_list(random_rows(9)).to_parquet(tmp_path / "rows.parquet")
    recorded = client(cache_by_command, str(tmp_path / "rows.parquet"), str(tmp_path / "cached")).value
    assert recorded == {"repo": "alice/reference", "commit": commit, **identify_reference(tiny_siglip(1))}
    assert hub.repo("alice/reference").head.oid != commit
    assert f"alice/reference@{commit}" in hub.repo("alice/cache", "datasets").head.files["README.md"].data.decode()


# ---- Who may ----


def test_private_by_token(hub, client, tmp_path, folder):
    client(push, str(folder), private=True)
    assert hub.repo("alice/cache", "datasets").private
    client(look_up, home=tmp_path / "alice")
    for who, token in (("bob", "hf_bob_writes"), ("nobody", None)):
        with pytest.raises(Failed) as failed:
            client(look_up, token=token, home=tmp_path / who)
        message = str(failed.value)
        assert failed.value.kind == "OSError" and "\n" not in message
        assert message.startswith("reference_cache='alice/cache' is neither a folder nor a repository of http://127")
        assert "if it is private, log in with" in message


def look_up_with(token):
    return look_up(token=token)["commit"]


def push_with(folder, token):
    return push(folder, token=token)


def test_a_token_can_be_given_to_the_calls(hub, client, tmp_path, folder):
    commit = client(push_with, str(folder), "hf_alice_writes", token=None).value
    hub.repo("alice/cache", "datasets").private = True
    assert client(look_up_with, "hf_alice_writes", token=None, home=tmp_path / "new").value == commit


def test_tokens_are_nowhere_and_nobody_else_is_asked(hub, client, tmp_path, folder):
    pushed = client(push, str(folder))
    pulled = client(look_up, home=tmp_path / "new")
    assert "hf_alice" not in pushed.log + pulled.log
    files = hub.repo("alice/cache", "datasets").head.files
    assert {"README.md", "manifest.json"} < set(files)
    assert not [path for path, blob in files.items() if b"hf_alice" in blob.data]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_alice" in path.read_bytes()]
    for request in hub.requests:
        elsewhere = request.path.startswith(("/_lfs/", "/_cdn/"))
        assert "hf_alice" not in request.target
        assert request.host == ("localhost" if request.path.startswith("/_cdn/") else "127.0.0.1")
        assert request.token == (None if elsewhere else "hf_alice_writes")


# ---- What goes wrong on the way down ----


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("GET", "/revision/main", BUSY),
        ("GET", "/_cdn/", BUSY),
        ("GET", "/_cdn/", {"cut": 1000}),
        ("GET", "/_cdn/", {"cut": 1000, "reset": True}),
        ("GET", "/_cdn/", {"shorten_to": 1000}),
        ("GET", "/manifest.json", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("GET", "/_cdn/", {"corrupt": True}),
        ("GET", "/manifest.json", {"corrupt": True}),
    ],
    ids=str,
)
def test_a_pull_survives(hub, client, tmp_path, folder, method, path, fault):
    client(push, str(folder))
    injected = hub.fail(method, path, **fault)
    outcome = client(look_up, home=tmp_path / "new")
    assert injected.times == 0
    for shard in folder.iterdir():
        assert outcome.value["files"][shard.name] == shard.read_bytes()
    assert ("differs from the file on the Hub; downloading it again" in outcome.log) == ("corrupt" in fault)


@pytest.mark.parametrize("xet", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_shard_that_is_damaged_on_the_disk_is_downloaded_again(hub, client, tmp_path, folder, damage, xet):
    hub.cas = tmp_path / "cas" if xet else None
    client(push, str(folder), xet=xet)
    expected = client(look_up, xet=xet).value
    cached = next(client.home.rglob("shard-00001.safetensors")).resolve()
    cached.chmod(0o644)
    whole = cached.read_bytes()
    cached.write_bytes(whole[:-9] if damage == "truncated" else whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Failed, match="shard-00001.safetensors .*unset HF_HUB_OFFLINE to download it again"):
        client(look_up, offline=True, xet=xet)
    outcome = client(look_up, xet=xet)
    assert "downloading it again" in outcome.log and outcome.value["files"] == expected["files"]


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_shard_that_was_pushed_damaged_is_refused(hub, client, tmp_path, folder, damage):
    """By other means than ours, with a hash of its own at the Hub: the manifest's sha256 is what counts."""
    client(push, str(folder))
    repo, name = hub.repo("alice/cache", "datasets"), "shard-00003.safetensors"
    whole = (folder / name).read_bytes()
    if damage == "missing":
        del repo.head.files[name]
    else:
        spoilt = whole[:-9] if damage == "truncated" else whole[:-1] + bytes([whole[-1] ^ 1])
        hub.put("alice/cache", {name: spoilt}, kind="datasets")
    with pytest.raises(Failed) as failed:
        client(look_up, home=tmp_path / "new")
    said = {
        "truncated": "bytes, and the manifest lists it with",
        "changed": "is damaged: its sha256",
        "missing": "is missing",
    }
    assert failed.value.kind == "ValueError" and "\n" not in str(failed.value)
    assert name in str(failed.value) and said[damage] in str(failed.value)


@pytest.mark.parametrize(
    ("repo", "revision", "words"),
    [
        ("alice/none", None, "reference_cache='alice/none' is neither a folder nor a repository of http://127"),
        ("alice/cache", "v9", "reference_cache_revision='v9' is no branch, tag or commit of reference_cache='alice/"),
        ("alice/empty", None, "has no reference cache"),
    ],
)
def test_what_is_not_there_is_named(hub, client, folder, repo, revision, words):
    client(push, str(folder))
    hub.put("alice/empty", {"README.md": b"nothing"}, kind="datasets")
    with pytest.raises(Failed) as failed:
        client(look_up, revision, repo)
    assert words in str(failed.value) and "\n" not in str(failed.value)


# ---- What goes wrong on the way up ----


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("POST", "/repos/create", BUSY),
        ("POST", "/preupload/", BUSY),
        ("PUT", "/_lfs/", {"hang_up_after": 100}),
        ("POST", "/commit/", {"status": 503}),
        ("POST", "/commit/", {"status": 412}),
        ("POST", "/commit/", {"deaf": True}),  # the commit is made, and its answer lost
        ("POST", "/commit/", {"cut": 10, "reset": True}),
    ],
    ids=str,
)
def test_a_push_survives(hub, client, tmp_path, folder, method, path, fault):
    injected = hub.fail(method, path, **fault)
    client(push, str(folder))
    assert injected.times == 0
    repo = hub.repo("alice/cache", "datasets")
    titles = [commit.title for commit in repo.history(repo.head)]
    assert titles == ["Update the card", "Upload reference cache", "initial commit"]
    assert len(client(look_up, home=tmp_path / "new").value["image"]) == N_ROWS


@pytest.mark.parametrize(
    ("method", "path", "fault", "words"),
    [
        ("POST", "/commit/", {"status": 503}, "503 injected"),
        ("POST", "/commit/", {"hang_up_after": 10}, "Error"),
        ("POST", "/preupload/", {"status": 403}, "403 injected"),
        ("POST", "/repos/create", {"status": 401}, "401 injected"),
    ],
    ids=str,
)
def test_a_push_that_fails_leaves_the_cache_and_says_how_to_go_on(
    hub, client, tmp_path, folder, method, path, fault, words
):
    before = contents(folder)
    hub.fail(method, path, times=100, **fault)
    with pytest.raises(Failed) as failed:
        client(push, str(folder))
    message = str(failed.value)
    assert failed.value.kind == "OSError" and "\n" not in message and "hf_alice" not in message, message
    assert message.startswith("the push of the reference cache to 'alice/cache' failed (") and words in message
    assert (
        f"push it later with `hf upload alice/cache {folder} --repo-type dataset --include manifest.json " in message
    )
    assert contents(folder) == before
    hub.faults.clear()
    client(push, str(folder))
    assert len(client(look_up, home=tmp_path / "new").value["image"]) == N_ROWS


def test_xet_where_the_hub_has_none_is_one_sentence(hub, client, folder):
    with pytest.raises(Failed, match="the push of the reference cache to 'alice/cache' failed") as failed:
        client(push, str(folder), xet=True)
    assert failed.value.kind == "OSError" and "\n" not in str(failed.value)


def test_an_unfinished_cache_is_not_pushed(hub, client, folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(Failed) as failed:
        client(push, str(folder))
    assert failed.value.kind == "FileNotFoundError"
    assert not hub.requests


def test_a_manifest_tells_nothing_about_the_machine(folder):
    said = json.dumps(json.loads((folder / "manifest.json").read_text()))
    assert str(folder) not in said and str(Path.home()) not in said
