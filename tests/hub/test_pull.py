# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pulling a reference: at which commit, which files, who may, what is cached, and what is said where it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import SiglipModel

from jest_hf.hub.pull import license_of
from jest_hf.reference import load_reference
from tests.helpers import tiny_siglip, tiny_siglip_processor
from tests.hub_server import Failed


def files_of(folder: Path, seed: int = 1, image_size: int = 16, max_length: int = 8) -> dict[str, bytes]:
    """What a repository with a tiny SigLIP and its processor holds."""
    tiny_siglip(seed, image_size, max_length).save_pretrained(folder)
    tiny_siglip_processor(image_size, max_length).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def reference(hub, tmp_path):
    """Puts `alice/reference` on the Hub; its commit."""
    return hub.put("alice/reference", files_of(tmp_path / "reference"))


def pull(name="alice/reference", revision=None):
    model, processor = load_reference(name, revision)
    return {
        "commit": model.config._commit_hash,
        "name": model.config._name_or_path,
        "frozen": not any(weight.requires_grad for weight in model.parameters()) and not model.training,
        "size": processor.image_processor.size["height"],
        "state": {key: value.numpy() for key, value in model.state_dict().items()},
    }


def has_weights_of(pulled, seed, image_size=16):
    expected = tiny_siglip(seed, image_size).state_dict()
    return all(torch.equal(torch.from_numpy(pulled["state"][name]), weight) for name, weight in expected.items())


def refused(client, *args, **options) -> str:
    """The one sentence that a pull fails with."""
    with pytest.raises(Failed) as failed:
        client(pull, *args, **options)
    assert failed.value.kind in ("OSError", "ValueError"), failed.value.outcome.trace
    message = str(failed.value)
    assert "\n" not in message and message.endswith("."), message
    assert "hf_" not in message.replace("hf_hub", ""), message
    return message


# ---- At one commit ----


def test_a_branch_is_resolved_to_its_commit(hub, client, reference):
    pulled = client(pull).value
    assert (pulled["commit"], pulled["name"]) == (reference, "alice/reference")
    assert pulled["frozen"] and has_weights_of(pulled, 1)
    assert len(hub.asked("GET", "/revision/main")) == 1
    # Every other request names the commit: no push can come between the weights and the processor.
    assert all(f"/resolve/{reference}/" in request.path for request in hub.asked("HEAD"))


def test_branches_tags_and_commits_pin(hub, client, reference, tmp_path):
    second = hub.put("alice/reference", files_of(tmp_path / "second", seed=2, image_size=24))
    hub.repo("alice/reference").tags["v1"] = reference
    hub.repo("alice/reference").branches["dev/x"] = reference
    for revision, commit, seed, size in [
        (None, second, 2, 24),
        ("v1", reference, 1, 16),
        ("dev/x", reference, 1, 16),
        (reference, reference, 1, 16),
    ]:
        pulled = client(pull, "alice/reference", revision).value
        assert (pulled["commit"], pulled["size"]) == (commit, size), revision
        assert has_weights_of(pulled, seed, size)


def test_a_cached_commit_costs_no_request(hub, client, reference):
    client(pull)
    before = len(hub.requests)
    client(pull, revision=reference)
    assert len(hub.requests) == before
    client(pull)
    assert [request.path for request in hub.requests[before:]] == ["/api/models/alice/reference/revision/main"]


def test_only_what_a_model_needs_is_downloaded(hub, client, reference):
    unwanted = {"pytorch_model.bin", "optimizer.pt", "training_args.bin", "open_clip.safetensors"}
    unwanted |= {"last-checkpoint/model.safetensors", "onnx/model.json"}
    hub.put("alice/reference", dict.fromkeys(unwanted, b"0" * 9))
    client(pull)
    asked = {request.path.split("/resolve/")[1].split("/", 1)[1] for request in hub.asked("HEAD")}
    assert "model.safetensors" in asked and not asked & unwanted


# ---- Who may ----


def test_private_by_token(hub, client, reference):
    hub.repo("alice/reference").private = True
    assert client(pull).value["commit"] == reference
    for who, token in (("bob", "hf_bob_writes"), ("nobody", None)):
        message = refused(client, token=token, home=client.home.with_name(who))
        assert message.startswith("ref_model='alice/reference' is neither a folder nor a repository of http://127")
        assert "if it is private, log in with `hf auth login` or HF_TOKEN" in message


def test_gated_by_access(hub, client, reference):
    hub.repo("alice/reference").gated = True
    message = refused(client, token="hf_bob_writes")
    assert f"is gated and this account has no access to it; ask for access at {hub.endpoint}/alice/ref" in message
    hub.repo("alice/reference").granted.add("bob")
    assert client(pull, token="hf_bob_writes").value["commit"] == reference


def test_a_wrong_token_is_named(hub, client, reference):
    message = refused(client, token="hf_expired")
    assert "was refused (401 Invalid credentials in Authorization header); log in with `hf auth login`" in message
    assert "expired" not in message


def test_tokens_stay_at_the_endpoint(hub, client, reference):
    client(pull)
    assert hub.asked("GET", "/_cdn/")
    for request in hub.requests:
        assert request.host == ("localhost" if request.path.startswith("/_cdn/") else "127.0.0.1")
        assert request.token == (None if request.host == "localhost" else "hf_alice_writes")
    found = [path for path in client.home.rglob("*") if path.is_file() and b"hf_alice" in path.read_bytes()]
    assert not found


# ---- Offline, local, and what is not there ----


def test_offline_from_the_cache(hub, client, reference):
    client(pull)
    before = len(hub.requests)
    assert client(pull, offline=True).value["commit"] == reference
    assert len(hub.requests) == before


def test_offline_without_a_copy(hub, client, reference):
    message = refused(client, "alice/reference", "v1", offline=True)
    assert "ref_model='alice/reference' at revision 'v1' is not in the cache" in message
    assert "HF_HUB_OFFLINE is set; download it with `hf download alice/reference`" in message
    assert not hub.requests


def test_offline_as_a_user_sets_it(hub, client, reference):
    """In a process of its own, with nothing but environment variables."""
    client(pull)
    hub.requests.clear()
    code = "from jest_hf.reference import load_reference as l; print(l('alice/reference')[0].config._commit_hash)"
    environment = {**os.environ, "HF_HOME": str(client.home), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.endpoint}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == reference
    assert not hub.requests


def test_a_local_path_asks_nobody(hub, client, tmp_path):
    files_of(tmp_path / "local", seed=3)
    pulled = client(pull, str(tmp_path / "local")).value
    assert has_weights_of(pulled, 3) and pulled["commit"] is None
    assert not hub.requests
    message = refused(client, str(tmp_path / "local"), "v1")
    assert "ref_model_revision='v1'" in message and "is a folder; leave the revision out" in message


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("alice/none", None, "ref_model='alice/none' is neither a folder nor a repository of http://127"),
        ("out/runs/7", None, "ref_model='out/runs/7' is neither a folder nor the id of a Hub repository"),
        ("alice/reference", "v9", "ref_model_revision='v9' is no branch, tag or commit of ref_model='alice/ref"),
        ("alice/reference", "0" * 40, f"ref_model_revision='{'0' * 40}' is no branch, tag or commit"),
    ],
)
def test_what_is_not_there(client, reference, name, revision, words):
    assert words in refused(client, name, revision)


def test_by_xet(hub, client, tmp_path):
    """The other transport, whose blobs can be links themselves: verified all the same, and mended."""
    hub.cas = tmp_path / "cas"
    files_of(tmp_path / "reference")
    commit = client(push_folder, str(tmp_path / "reference"), xet=True).value
    pulled = client(pull, xet=True).value
    assert pulled["commit"] == commit and has_weights_of(pulled, 1)
    assert not hub.asked("GET", "/_cdn/")
    cached = next(path for path in client.home.rglob("model.safetensors")).resolve()
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes()[:-8] + b"damaged!")
    outcome = client(pull, xet=True)
    assert "downloading it again" in outcome.log and has_weights_of(outcome.value, 1)


def push_folder(folder):
    from huggingface_hub import HfApi

    HfApi().create_repo("alice/reference")
    return HfApi().upload_folder(repo_id="alice/reference", folder_path=folder).oid


def test_a_pickle_is_not_opened(hub, client, tmp_path):
    files = files_of(tmp_path / "pickle")
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    hub.put("alice/reference", files)
    assert "has no weights in safetensors" in refused(client)
    assert not hub.asked("HEAD", "pytorch_model.bin")


def test_an_adapter_brings_its_base(hub, client, reference, tmp_path):
    peft = pytest.importorskip("peft")
    base = SiglipModel.from_pretrained(tmp_path / "reference")
    adapter = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "adapter")
    tiny_siglip_processor().save_pretrained(tmp_path / "adapter")
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    about |= {"base_model_name_or_path": "alice/reference", "revision": reference}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    commit = hub.put(
        "alice/adapter", {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir() if path.is_file()}
    )
    pulled = client(pull, "alice/adapter").value
    assert (pulled["commit"], pulled["name"]) == (commit, "alice/adapter")
    lora = [name for name in pulled["state"] if "lora_B" in name]
    assert lora and any(pulled["state"][name].any() for name in lora)
    assert pulled["frozen"]


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (b"---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        (b"---\nlicense: [mit, apache-2.0]\n---\n", None),  # a card of ours has one
        (b"---\ntags: [jest]\n---\n", None),
        (b"# No metadata\n", None),
    ],
)
def test_the_licence_of_a_card(hub, client, card, licence):
    hub.put("alice/model", {"README.md": card})
    assert client(license_of, "alice/model").value == licence


def test_a_licence_that_cannot_be_read_is_not_known(hub, client):
    hub.fail("GET", "/api/models/alice/model", status=503, times=100)
    assert client(license_of, "alice/model").value is None and len(hub.asked("GET", "alice/model")) == 1
    assert client(license_of, "alice/gone").value is None
    assert client(license_of, "alice/model", offline=True).value is None and len(hub.asked("GET", "alice/model")) == 1
