# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer on several processes (DistributedDataParallel over gloo): the same run, whatever their number."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from jest_hf import JESTConfig, JESTTrainer
from jest_hf.report import read_rejected, read_selections
from tests.distributed.processes import run
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor


pytestmark = pytest.mark.long
STEPS = 20
SUB_BATCH = 16  # over all ranks


def _train(
    folder: str, changes: dict[str, Any], break_rows: tuple[int, ...] = (), lora: bool = False, shards: int = 0
) -> dict:
    """Train on this rank; with `shards`, on a stream of so many."""
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    settings = {
        "output_dir": folder,
        "filter_ratio": 0.75,
        "n_chunks": 4,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "record_selection": True,
        "per_device_train_batch_size": SUB_BATCH // world_size,
        **changes,
    }
    rows = random_rows(200)
    for index in break_rows:
        rows[index]["image"] = b"no image"
    options: dict[str, Any] = {"ref_model": tiny_siglip(1)}
    if lora:
        from peft import LoraConfig

        options = {"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)}
    torch.manual_seed(0)
    trainer = JESTTrainer(
        model=tiny_siglip(0),
        args=JESTConfig(**settings),
        train_dataset=datasets.Dataset.from_list(rows).to_iterable_dataset(shards) if shards else rows,
        eval_dataset=random_rows(9, seed=1),
        processing_class=tiny_siglip_processor(),
        **options,
    )
    taken = []
    learn = trainer.learn

    def spy(model, batch, *args):
        taken.append(batch["example_id"].tolist())
        return learn(model, batch, *args)

    trainer.learn = spy
    resume = settings.get("resume_from_checkpoint")
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.accelerator.num_processes == world_size
    assert isinstance(trainer.model_wrapped, DistributedDataParallel) == (world_size > 1)
    return {
        "taken": taken,
        "logs": trainer.state.log_history,
        "evaluation": trainer.evaluate(),
        "seen": trainer.statistics.seen,
        "weights": {name: value.detach().numpy() for name, value in trainer.model.state_dict().items()},
    }


def _selected(folder: Path) -> dict[int, list[int]]:
    """Ids by step, in order of drawing."""
    steps = defaultdict(list)
    for row in sorted(read_selections(folder / "selections.parquet").to_pylist(), key=lambda row: row["order"]):
        steps[row["step"]].append(row["example_id"])
    return steps


def _ledger_matches(folder: Path, results: list[dict]) -> None:
    """The ledger says what each rank has trained on, and no example was trained on by two."""
    for row in read_selections(folder / "selections.parquet").to_pylist():
        assert row["example_id"] in results[row["rank"]]["taken"][row["step"] - 1]
        assert (row["score"] is None) == (row["stage"] == "uniform")
    for row in read_rejected(folder / "selections.parquet").to_pylist():
        assert all(row["example_id"] not in result["taken"][row["step"] - 1] for result in results)
        assert row["score"] is not None and 0 <= row["rank"] < len(results)
    for per_rank in zip(*(result["taken"] for result in results), strict=True):
        assert len({len(ids) for ids in per_rank}) == 1
        assert len(set().union(*per_rank)) == sum(map(len, per_rank))


def _close(a: dict[str, np.ndarray], b: dict[str, np.ndarray], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_allclose(b[name], value, atol=tolerance, rtol=0, err_msg=name)


# Adam turns the rounding of a gradient near zero into a step of another size: up to 2e-2 after 20 steps of 1e-3, here
# far less.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, _train(str(folder), {})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run whose learning rate does not depend on the number of steps."""
    folder = tmp_path_factory.mktemp("whole")
    _train(str(folder), {"lr_scheduler_type": "constant"})
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two processes that stop after step 10."""
    folder = tmp_path_factory.mktemp("stopped")
    save = {"save_strategy": "steps", "save_steps": 10}
    run(2, _train, str(folder), {**save, "max_steps": 10, "lr_scheduler_type": "constant"})
    return folder


def test_early_steps_fill_the_sub_batch_on_every_rank(tmp_path: Path) -> None:
    """Where rows are broken, ranks have to look further than the schedule says, and not all of them as far."""
    schedule = {"selection_warmup_steps": 3, "filter_ratio_ramp_steps": 4, "max_steps": 8}
    results = run(2, _train, str(tmp_path), schedule, tuple(range(0, 200, 2)))
    for result in results:
        assert [len(ids) for ids in result["taken"]] == [SUB_BATCH // 2] * 8
    _ledger_matches(tmp_path, results)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_same_examples_and_weights_on_any_number_of_processes(
    alone: tuple[Path, dict], tmp_path: Path, world_size: int
) -> None:
    expected_folder, expected = alone
    results = run(world_size, _train, str(tmp_path), {})
    selected, reference = _selected(tmp_path), _selected(expected_folder)
    assert len(reference) == STEPS
    for step, ids in reference.items():
        assert set(selected[step]) == set(ids), f"step {step}"
    _ledger_matches(tmp_path, results)
    for result in results:
        _close(expected["weights"], result["weights"], TOLERANCE)
        assert result["seen"] == expected["seen"]
        assert result["evaluation"]["eval_R@5"] == pytest.approx(expected["evaluation"]["eval_R@5"])
    for name in ("loss", "selected/learnability", "rejected/learner_loss", "effective_sample_size/chunk_02"):
        ours = [entry[name] for entry in results[0]["logs"] if name in entry]
        theirs = [entry[name] for entry in expected["logs"] if name in entry]
        assert len(theirs) == STEPS
        if name != "rejected/learner_loss":  # the first of each share: other ones
            assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-3)
    moved = [entry["exchange/examples"] for entry in results[0]["logs"] if "exchange/examples" in entry]
    assert len(moved) == STEPS and 0 < sum(moved) < STEPS * SUB_BATCH / 2


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_exchange": "ring", "loss_tile_size": 3},
        {"gradient_cache_chunk_size": 3, "ddp_find_unused_parameters": False},
        {"cache_reference": True, "scoring_batch_size": 5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_ways_to_the_same_run(alone: tuple[Path, dict], tmp_path: Path, changes: dict[str, Any]) -> None:
    results = run(2, _train, str(tmp_path), changes)
    assert _selected(tmp_path).keys() == _selected(alone[0]).keys()
    assert {step: set(ids) for step, ids in _selected(tmp_path).items()} == {
        step: set(ids) for step, ids in _selected(alone[0]).items()
    }
    _close(alone[1]["weights"], results[1]["weights"], TOLERANCE)


@pytest.mark.parametrize("selection", ["uniform", "independent"])
def test_other_selections_are_the_same_on_two_processes(tmp_path: Path, selection: str) -> None:
    changes = {"selection": selection, "max_steps": 6}
    expected = _train(str(tmp_path / "alone"), changes)
    results = run(2, _train, str(tmp_path / "two"), changes)
    assert {step: set(ids) for step, ids in _selected(tmp_path / "two").items()} == {
        step: set(ids) for step, ids in _selected(tmp_path / "alone").items()
    }
    _ledger_matches(tmp_path / "two", results)
    _close(expected["weights"], results[0]["weights"], TOLERANCE)


def test_local_selection_chooses_on_each_process_for_itself(alone: tuple[Path, dict], tmp_path: Path) -> None:
    results = run(2, _train, str(tmp_path), {"selection_scope": "local", "max_steps": 3})
    _ledger_matches(tmp_path, results)
    selected, together = _selected(tmp_path), _selected(alone[0])
    assert all(len(ids) == SUB_BATCH for ids in selected.values())
    assert set(selected[1]) != set(together[1])
    assert not any("exchange/examples" in entry for entry in results[0]["logs"])


@pytest.mark.parametrize("selection", ["joint", "uniform"])
def test_broken_rows_leave_every_process_with_its_part(tmp_path: Path, selection: str) -> None:
    broken = tuple(range(0, 200, 3)) if selection == "joint" else tuple(range(0, 200, 2))
    changes = {"selection": selection, "max_steps": 6}
    expected = _train(str(tmp_path / "alone"), changes, broken)
    results = run(2, _train, str(tmp_path / "two"), changes, broken)
    for step, ids in _selected(tmp_path / "alone").items():
        assert set(_selected(tmp_path / "two")[step]) == set(ids)
        assert not set(ids) & set(broken)
    sizes = [[len(ids) for ids in result["taken"]] for result in results]
    assert max(abs(a - b) for a, b in zip(*sizes, strict=True)) <= 1
    if selection == "joint":
        assert sizes == [[SUB_BATCH // 2] * 6] * 2
    _close(expected["weights"], results[0]["weights"], TOLERANCE)


def _train_with_nan(folder: str) -> str:
    """Rank 1's share has an example on which the learner breaks down; what this rank says about it."""
    hook = SiglipEncoderLayer.forward

    def broken(self, hidden_states, *args, **kwargs):
        output = hook(self, hidden_states, *args, **kwargs)
        if torch.distributed.get_rank() == 1 and not torch.is_grad_enabled():
            output = output.index_fill(0, torch.tensor([0]), torch.nan)
        return output

    SiglipEncoderLayer.forward = broken
    with pytest.raises(FloatingPointError) as caught:
        _train(folder, {"scoring_batch_size": 32})
    return str(caught.value)


def test_a_nan_on_one_process_is_reported_by_all(tmp_path: Path) -> None:
    first, second = run(2, _train_with_nan, str(tmp_path))
    assert first == second
    assert "step 1" in first and "rank 1" in first and "example ids [" in first


def test_lora_with_the_backbone_as_reference(tmp_path: Path) -> None:
    changes = {"reference": "adapter", "max_steps": 6}
    expected = _train(str(tmp_path / "alone"), changes, lora=True)
    results = run(2, _train, str(tmp_path / "two"), changes, (), True)
    assert _selected(tmp_path / "alone")[6]
    for step, ids in _selected(tmp_path / "alone").items():
        assert set(_selected(tmp_path / "two")[step]) == set(ids)
    _close(expected["weights"], results[0]["weights"], TOLERANCE)
    learnability = [entry["selected/learnability"] for entry in expected["logs"] if "selected/learnability" in entry]
    assert learnability[0] != 0


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_run_resumed_on_two_processes_or_others_goes_on_as_if_nothing_had_happened(
    whole: Path, stopped: Path, tmp_path: Path, world_size: int
) -> None:
    """Two processes stop after step 10, in the middle of an epoch; others take over."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    resume = {"save_strategy": "steps", "save_steps": 10, "lr_scheduler_type": "constant"}
    resume |= {"resume_from_checkpoint": str(tmp_path / "checkpoint-10")}
    if world_size == 1:
        _train(str(tmp_path), resume)
    else:
        run(world_size, _train, str(tmp_path), resume)
    assert len(_selected(tmp_path)) == STEPS
    for step, ids in _selected(whole).items():
        assert set(_selected(tmp_path)[step]) == set(ids), f"step {step}"


def test_a_stream_is_read_in_parts_and_resumed(tmp_path: Path) -> None:
    """Each process reads its own shards, over several passes; a resumed run selects the same examples."""
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "constant"}
    results = run(2, _train, str(tmp_path / "whole"), settings, (), False, 4)
    _ledger_matches(tmp_path / "whole", results)
    assert results[0]["seen"] == 8 * 4 * SUB_BATCH
    assert "unique_share" not in results[0]["logs"][-1]
    run(2, _train, str(tmp_path / "cut"), {**settings, "max_steps": 5}, (), False, 4)
    checkpoint = str(tmp_path / "cut" / "checkpoint-5")
    run(2, _train, str(tmp_path / "cut"), {**settings, "resume_from_checkpoint": checkpoint}, (), False, 4)
    assert _selected(tmp_path / "cut") == _selected(tmp_path / "whole")
