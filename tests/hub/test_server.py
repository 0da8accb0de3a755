# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The Hub under test, asked by the real clients: what they send and see is what the Hub's own protocol has them do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.hub_server import Failed


CARD = b"---\nlicense: mit\n---\n# A model\n"


def write_folder(folder: Path) -> str:
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(6000))
    (folder / "README.md").write_bytes(CARD)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "ünï code.txt").write_text("é")
    return str(folder)


def sequence(hub) -> list[str]:
    """What was asked, without hashes and names."""
    hidden = [(r"[0-9a-f]{40,64}", "#"), (r"alice/\w+", "R"), (r"\?.*", "")]
    lines = []
    for request in hub.requests:
        line = f"{request.method} {request.target}"
        for pattern, word in hidden:
            line = re.sub(pattern, word, line)
        lines.append(line)
    return lines


def upload(folder, repo="alice/m", **options):
    from huggingface_hub import HfApi

    HfApi().create_repo(repo, exist_ok=True, repo_type=options.get("repo_type"))
    return HfApi().upload_folder(repo_id=repo, folder_path=folder, **options).oid


def download(repo="alice/m", **options):
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repo, **options))
    return folder.name, {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def call(method, *args, **kwargs):
    from huggingface_hub import HfApi

    return getattr(HfApi(), method)(*args, **kwargs)


BASIC = ["PUT /_lfs/#"]
IN_PARTS = ["PUT /_lfs/#/1", "PUT /_lfs/#/2", "PUT /_lfs/#/3", "POST /_lfs/#/complete"]


@pytest.mark.parametrize(("part_size", "puts"), [(None, BASIC), (2500, IN_PARTS)])
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_folder_goes_up_and_comes_down(hub, client, tmp_path, kind, part_size, puts):
    hub.part_size = part_size
    folder = write_folder(tmp_path / "folder")
    oid = client(upload, folder, repo_type=kind).value
    prefix, git = (f"/api/{kind}s/R", "/R.git" if kind == "model" else "/datasets/R.git")
    check, ask = ["POST /api/validate-yaml"] * 2, [f"POST {prefix}/preupload/main"]
    batch, verify = [f"POST {git}/info/lfs/objects/batch"], [f"POST {git}/info/lfs/verify"]
    commit = [f"POST {prefix}/commit/main"]
    assert sequence(hub) == ["POST /api/repos/create", *check, *ask, *batch, *puts, *verify, *commit]
    assert not [request for request in hub.requests if request.token and request.path.startswith("/_lfs/")]

    hub.requests.clear()
    assert client(upload, folder, repo_type=kind).value == oid
    assert sequence(hub)[1:] == [*check, *ask, *batch, f"GET {prefix}/revision/main"]

    hub.requests.clear()
    name, files = client(download, repo_type=kind).value
    assert name == oid
    assert files == {path: blob.data for path, blob in hub.repo("alice/m", f"{kind}s").head.files.items()}
    assert {Path(folder, path).read_bytes() == data for path, data in files.items() if path[0] != "."} == {True}
    assert sequence(hub)[:2] == [f"GET {prefix}/revision/main", f"GET {prefix}/tree/#"]
    for request in hub.requests:
        assert (
            (request.token is None) == request.path.startswith(("/_cdn/", "/_lfs/")) == (request.host != "127.0.0.1")
        )

    hub.requests.clear()
    client(download, repo_type=kind, revision=oid)
    assert not hub.requests


def test_data_sets(hub, client):
    assert client(push_and_load_dataset).value == [0, 1, 4, 9]


def push_and_load_dataset():
    from datasets import Dataset, load_dataset

    Dataset.from_dict({"x": [0, 1, 4, 9]}).push_to_hub("alice/squares", num_shards=2)
    return load_dataset("alice/squares", split="train")["x"][:]


def test_branches_tags_and_history(hub, client, tmp_path):
    first = client(upload, write_folder(tmp_path / "folder")).value
    client(call, "create_branch", "alice/m", branch="dev/x")
    client(call, "create_tag", "alice/m", tag="v1")
    (tmp_path / "folder" / "new.txt").write_text("new")
    second = client(upload, str(tmp_path / "folder"), revision="dev/x").value
    refs = client(call, "list_repo_refs", "alice/m").value
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": first, "dev/x": second}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    assert [commit.commit_id for commit in client(call, "list_repo_commits", "alice/m", revision="dev/x").value][
        :2
    ] == [second, first]
    assert client(download, revision="v1").value[0] == first
    assert "new.txt" in client(download, revision="dev/x").value[1]
    (info,) = client(call, "get_paths_info", "alice/m", ["model.safetensors", "none"]).value
    assert info.lfs.sha256 == hub.repo("alice/m").head.files["model.safetensors"].sha256
    assert client(call, "whoami").value["name"] == "alice"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"repo": "alice/none"}, "RepositoryNotFoundError"),
        ({"repo": "alice/none", "token": None}, "RepositoryNotFoundError"),
        ({"repo": "alice/private", "token": "hf_bob_writes"}, "RepositoryNotFoundError"),
        ({"repo": "alice/gated", "token": "hf_bob_writes"}, "GatedRepoError"),
        ({"repo": "alice/gated", "token": None}, "GatedRepoError"),
        ({"repo": "alice/gated", "token": "hf_wrong"}, "HfHubHTTPError"),
        ({"repo": "alice/gated", "revision": "none"}, "RevisionNotFoundError"),
    ],
    ids=str,
)
def test_refusals(hub, client, options, kind):
    hub.put("alice/private", {"a.txt": b"a"}, private=True)
    hub.put("alice/gated", {"a.txt": b"a"}, gated=True)
    with pytest.raises(Failed) as failed:
        client(download, **options)
    assert failed.value.kind == kind


def commit_on(parent, content=b"b"):
    from huggingface_hub import CommitOperationAdd, HfApi

    operation = CommitOperationAdd("b.txt", content)
    return HfApi().create_commit("alice/m", [operation], commit_message="b", parent_commit=parent).oid


def test_a_commit_on_a_stale_parent(hub, client):
    first = hub.put("alice/m", {"a.txt": b"a"})
    second = client(commit_on, first).value
    with pytest.raises(Failed, match="412"):
        client(commit_on, first, b"c")
    assert hub.repo("alice/m").head.oid == second
    with pytest.raises(Failed, match="403|rights"):
        client(commit_on, second, b"c", token="hf_bob_writes")


def test_bad_metadata_are_refused(hub, client, tmp_path):
    folder = write_folder(tmp_path / "folder")
    Path(folder, "README.md").write_text("---\n- a list\n---\n")
    with pytest.raises(Failed, match="Invalid metadata") as failed:
        client(upload, folder)
    assert failed.value.kind == "ValueError"
    assert hub.repo("alice/m").head.title == "initial commit"


# ---- The other transport ----


def test_a_folder_goes_up_and_comes_down_by_xet(hub, client, tmp_path):
    hub.cas = tmp_path / "cas"
    folder = write_folder(tmp_path / "folder")
    oid = client(upload, folder, xet=True).value
    assert client(upload, folder, xet=True).value == oid
    assert hub.asked("GET", "/xet-write-token/") and not hub.asked("PUT")
    name, files = client(download, xet=True, home=tmp_path / "new").value
    assert name == oid
    assert files["model.safetensors"] == Path(folder, "model.safetensors").read_bytes()
    assert hub.asked("GET", "/xet-read-token/") and not hub.asked("GET", "/_cdn/")


# ---- What the client does with faults, which jest_hf is built on ----


def test_a_large_download_is_resumed(hub, client):
    hub.put("alice/m", {"model.safetensors": os.urandom(1 << 10) * (12 << 10)})
    hub.fail("GET", "/_cdn/", cut=11 << 20)
    _, files = client(download).value
    assert files["model.safetensors"] == hub.repo("alice/m").head.files["model.safetensors"].data
    assert [request.headers.get("range") for request in hub.asked("GET", "/_cdn/")] == [None, f"bytes={10 << 20}-"]


def test_the_client_takes_wrong_bytes_for_right(hub, client):
    """Why jest_hf looks at what it has pulled: should this fail one day, the client does so itself."""
    hub.put("alice/m", {"model.safetensors": b"right" * 100})
    hub.fail("GET", "/_cdn/", corrupt=True)
    assert client(download).value[1]["model.safetensors"] != b"right" * 100


def test_a_stranger_is_noticed(client):
    with pytest.raises(AssertionError, match="asked for other machines: .*example.invalid"):
        client(ask_a_stranger)


def ask_a_stranger():
    import socket

    socket.getaddrinfo("example.invalid", 80)
