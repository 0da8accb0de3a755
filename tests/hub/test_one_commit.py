# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Several processes agree about what they get from the Hub, although somebody pushes while they start."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from jest_hf.distributed import Ranks
from jest_hf.reference import load_reference, locate_adapter, open_cache
from tests.distributed.processes import run
from tests.helpers import tiny_siglip_processor
from tests.hub.moving import Moving
from tests.hub.test_pull import files_of
from tests.reference.caching import make_cache, reference_model


WORLD_SIZE = 3


def adapter_files(folder: Path, base: str, seed: int) -> dict[str, bytes]:
    """An adapter that names its base, and no revision of it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(reference_model(1), settings).save_pretrained(folder)
    tiny_siglip_processor().save_pretrained(folder)
    about = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": base}))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def cache_files(folder: Path, seed: int) -> dict[str, bytes]:
    make_cache(folder, model=reference_model(seed))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def digest_of(state: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for _, value in sorted(state.items()))).hexdigest()


def ask(homes: str | None) -> dict[str, tuple[str | None, str]]:
    """What a rank gets of everything; with `homes` each has a cache of its own, as on a host of its own."""
    from huggingface_hub import constants

    ranks = Ranks.world()
    if homes is not None:
        constants.HF_HUB_CACHE = f"{homes}/{ranks.rank}"
    got = {}
    for name in ("alice/reference", "alice/adapted"):
        model, _ = load_reference(name, ranks=ranks)
        got[name] = (model.config._commit_hash, digest_of(model.state_dict()))
    adapter = locate_adapter("alice/adapted", ranks=ranks)
    weights = (adapter.folder / "adapter_model.safetensors").read_bytes()
    got["adapter"] = (adapter.commit, hashlib.sha256(weights).hexdigest())
    cache = open_cache("alice/cache", ranks=ranks)
    got["cache"] = (cache.folder.name, digest_of({"image": cache.take(torch.arange(23)).image}))
    return got


def ask_for(name: str) -> str:
    try:
        load_reference(name, ranks=Ranks.world())
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def on_all_ranks(function, *args):
    """To be called in a process whose Hub is the served one, which its children inherit."""
    return run(WORLD_SIZE, function, *args, start_method="fork")  # that process has imported everything


@pytest.mark.parametrize("hosts", ["one", "several"])
def test_all_ranks_have_one_commit_of_everything(hub, client, tmp_path, hosts):
    bases = [files_of(tmp_path / f"base{seed}", seed=seed) for seed in (1, 2)]
    adapters = [adapter_files(tmp_path / f"adapter{seed}", "alice/reference", seed) for seed in (1, 2)]
    caches = [cache_files(tmp_path / f"cache{seed}", seed) for seed in (1, 2)]
    hub.put("alice/reference", bases[0])
    hub.put("alice/adapted", adapters[0])
    hub.put("alice/cache", caches[0], kind="datasets")
    Moving(hub, {"alice/reference": bases[::-1], "alice/adapted": adapters[::-1]})
    Moving(hub, {"alice/cache": caches[::-1]}, kind="datasets")

    ranks = client(on_all_ranks, ask, str(tmp_path / "homes") if hosts == "several" else None).value
    assert len(ranks) == WORLD_SIZE and ranks[0] == ranks[1] == ranks[2]
    for name, kind, n_asked in (
        ("alice/reference", "models", 2),  # by itself, and as the base
        ("alice/adapted", "models", 2),
        ("alice/cache", "datasets", 1),
    ):
        repo = hub.repo(name, kind)
        assert len(repo.history(repo.head)) == 2 + n_asked  # the initial commit, the first, and one for each question
        assert len(hub.asked("GET", f"/api/{kind}/{name}/revision/main")) == n_asked
    assert ranks[0]["alice/adapted"][0] != ranks[0]["adapter"][0]  # there was a push in between, and it was seen
    if hosts == "one":  # nobody downloads what another has downloaded
        files = [request.path for request in hub.asked("GET", "/_cdn/")]
        assert len(files) == len(set(files))
    shutil.rmtree(tmp_path / "homes", ignore_errors=True)


def test_what_is_not_there_ends_all_ranks(hub, client):
    first, *others = client(on_all_ranks, ask_for, "alice/none").value
    assert first.startswith("OSError: ref_model='alice/none' is neither a folder nor a repository of http://127")
    assert others == [f"RuntimeError: rank 0 says: {first.removeprefix('OSError: ')}"] * (WORLD_SIZE - 1)
