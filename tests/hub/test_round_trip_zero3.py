# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Train on two processes under ZeRO-3, push, and use what was pushed elsewhere: through the served Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed import launching
from tests.helpers import tiny_siglip, tiny_siglip_processor
from tests.hub.moving import Moving
from tests.hub.test_publisher import use_elsewhere
from tests.hub.test_pull import files_of


pytestmark = pytest.mark.long
pytest.importorskip("deepspeed")

SETTINGS = {
    "per_device_train_batch_size": 4,
    "filter_ratio": 0.5,
    "n_chunks": 2,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "ddp_backend": "gloo",
    "hub_model_id": "alice/learner",
}


@pytest.fixture
def trained(hub, tmp_path, monkeypatch):
    """What each rank reports; the reference's repository has a new commit each time that anybody asks for its head."""
    tiny_siglip(0, max_length=64).save_pretrained(tmp_path / "learner")
    tiny_siglip_processor(max_length=64).save_pretrained(tmp_path / "learner")
    first = hub.put("alice/reference", files_of(tmp_path / "first", seed=1, max_length=64))
    Moving(hub, {"alice/reference": [files_of(tmp_path / "second", seed=2, max_length=64)]})
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_alice_writes",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launching, "SCRIPT", Path(__file__).with_name("zero3_script.py"))
    settings = {**SETTINGS, "output_dir": str(tmp_path / "out")}
    run = {"learner": str(tmp_path / "learner"), "reference": "alice/reference", "settings": settings}
    (ranks,) = launching.launch("zero3", tmp_path / "reports", [run])
    assert [rank["reference"] for rank in ranks] == [first, first]
    return ranks


def test_round_trip(hub, client, tmp_path, trained):
    assert [(rank["stage"], rank["num_processes"], rank["whole"]) for rank in trained] == [(3, 2, [])] * 2
    # Both ranks have the reference of one commit, which was asked for and downloaded once.
    assert trained[0]["reference_sum"] == trained[1]["reference_sum"]
    assert len(hub.asked("GET", "/api/models/alice/reference/revision/main")) == 1
    assert len({request.path for request in hub.asked("GET", "/_cdn/")}) == len(hub.asked("GET", "/_cdn/")) == 1

    commit = trained[0]["commit"]
    assert hub.repo("alice/learner").head.oid == commit
    used = client(use_elsewhere, str(tmp_path / "other"), "alice/learner", commit, home=tmp_path / "new").value
    pushed = hub.repo("alice/learner").head.files["model.safetensors"].data
    assert pushed == (tmp_path / "out" / "model.safetensors").read_bytes()
    before = tiny_siglip(0, max_length=64).state_dict()
    for rank in range(2):
        gathered = load_file(tmp_path / "reports" / f"gathered{rank}.safetensors")
        assert gathered.keys() <= used["state"].keys()
        for name, weight in gathered.items():
            assert torch.equal(torch.from_numpy(used["state"][name]), weight), name
        assert any(not torch.equal(before[name], weight) for name, weight in gathered.items())
    for rank in trained:
        assert used["evaluation"] == pytest.approx(rank["evaluation"], rel=1e-5)
    assert used["class"] == "SiglipModel"
    assert used["pipeline"] == pytest.approx(used["by hand"])
    assert used["by embeddings"] == pytest.approx(used["by hand"])
    assert (used["as reference"]["commit"], used["as reference"]["steps"]) == (commit, 3)
    assert all((used["as reference"]["state"][name] == value).all() for name, value in used["state"].items())
