# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Ways of starting several processes that would silently train something else, each refused with its way out."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import yaml

from jest_hf import JESTConfig
from jest_hf.cli import CONFIGS
from jest_hf.training.checks import check_launch
from tests.distributed.launching import start, tail, without_compiled_operators
from tests.distributed.processes import run


def outcome_on_rank(folder: str, environment: dict[str, str], settings: dict[str, Any]) -> str:
    """What check_launch says on one rank of a gloo group that was started as torchrun does."""
    import torch.distributed as dist

    dist.barrier()  # or a rank that is done would be gone before the other has found it
    without_compiled_operators()
    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    os.environ.update(torchrun | environment)
    try:
        check_launch(JESTConfig(output_dir=folder, **settings))
    except ValueError as error:
        return str(error)
    return "started"


def outcome(folder, environment=None, **settings):
    first, second = run(2, outcome_on_rank, str(folder), environment or {}, settings)
    assert first == second
    return first


def test_ddp_on_cpus_starts(tmp_path):
    assert outcome(tmp_path, use_cpu=True) == "started"


def test_accelerate_and_torch_must_agree_on_the_number_of_processes(tmp_path):
    assert "2 processes were started, and accelerate uses 1" in outcome(tmp_path)


def test_deepspeed_in_the_arguments_under_torchrun_is_refused(tmp_path):
    """A real engine over gloo, but all ranks would train on the same data."""
    config = json.loads((CONFIGS / "zero2.json").read_text())
    said = outcome(tmp_path, {"DS_ACCELERATOR": "cpu"}, deepspeed=config)
    assert "2 processes were started, and accelerate uses 1" in said and "ddp_backend='gloo'" in said


def test_deepspeed_on_cpus_starts(tmp_path):
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
    deepspeed["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(CONFIGS / "zero2.json")
    assert outcome(tmp_path, deepspeed, ddp_backend="gloo") == "started"
    assert "use_cpu=True makes accelerate ignore the DeepSpeed" in outcome(tmp_path, deepspeed, use_cpu=True)


def test_processes_whose_gradients_nobody_averages_are_refused(tmp_path):
    assert "2 processes were started with accelerate's distributed_type NO" in outcome(tmp_path, ddp_backend="gloo")


@pytest.mark.parametrize("settings", [{"use_cpu": True}, {"ddp_backend": "gloo"}], ids=["use_cpu", "gloo"])
def test_fsdp_on_cpus_is_refused(tmp_path, settings):
    said = outcome(tmp_path, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, **settings)
    assert "accelerate cannot shard a model with FSDP on CPUs" in said
    assert said == outcome(tmp_path, fsdp=True, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"dataloader_drop_last": False},
        {"accelerator_config": {"dispatch_batches": True}},
        {"accelerator_config": {"split_batches": True}},
    ],
    ids=["drop_last", "dispatch_batches", "split_batches"],
)
def test_every_rank_reads_its_own_equal_share(tmp_path, settings):
    name = next(iter(settings.get("accelerator_config", settings)))
    assert name in outcome(tmp_path, use_cpu=True, **settings)
    check_launch(JESTConfig(output_dir=tmp_path, use_cpu=True, **settings))  # one process may


def test_several_gpus_for_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(JESTConfig, "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs are visible to one process.*start one process per GPU"):
        check_launch(JESTConfig(output_dir=tmp_path))


def test_one_process_where_several_were_asked_for_is_refused(tmp_path):
    """accelerate 1.15 says nothing when it starts one process for `distributed_type: MULTI_CPU` without MPI."""
    ddp = yaml.safe_load((CONFIGS / "ddp.yaml").read_text())
    preset = tmp_path / "multi_cpu.yaml"
    preset.write_text(yaml.safe_dump(ddp | {"distributed_type": "MULTI_CPU", "num_processes": 2, "use_cpu": True}))
    settings = {"output_dir": str(tmp_path), "selection": "uniform"}
    run_of_script = {"learner": "", "reference": None, "settings": settings}
    output = start(["--config_file", str(preset)], tmp_path, [run_of_script])
    assert output.returncode != 0
    assert "accelerate launch started one process in place of several" in tail(output)
