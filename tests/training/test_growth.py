# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a run keeps does not grow with its steps: benchmarks/long_run.py measures what these tests say of the parts."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from benchmarks import long_run
from jest_hf import JESTDataCollator
from jest_hf.report import RunStatistics, SelectionLedger, ledger, read_selections, statistics
from jest_hf.report.ledger import read_rejected
from tests.data.hostile import GOOD
from tests.helpers import random_rows, tiny_siglip_processor
from tests.trainers import make_trainer


class Sizes(TrainerCallback):
    """Lengths of all containers that the parts of a run hold, by path, after some steps."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps, self.found, self.parts = steps, [], None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            lengths: dict[str, int] = {}
            walk("parts", self.parts, lengths, set())
            self.found.append(lengths)


def walk(path: str, value: Any, lengths: dict[str, int], seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict | list | set | tuple | deque):
        lengths[path] = len(value)
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for name, one in list(inner)[:50]:
            walk(f"{path}[{name}]", one, lengths, seen)
    elif isinstance(value, torch.Tensor | np.ndarray):
        lengths[path] = value.size if isinstance(value, np.ndarray) else value.numel()
    elif type(value).__module__.startswith("jest_hf") and hasattr(value, "__dict__"):
        for name, one in vars(value).items():
            walk(f"{path}.{name}", one, lengths, seen)


BOUNDED = ("_pending", "_window", "_host", "_taken", "_metrics")  # the first two have tests of their own below


def test_what_the_parts_hold_is_the_same_after_52_and_after_64_steps(tmp_path):
    rows = random_rows(100)
    for row in rows[::5]:
        row["image"] = None
    sizes = Sizes((52, 64))  # some watches have a window of 50 steps
    changes = {
        "max_steps": 64,
        "per_device_train_batch_size": 4,
        "logging_strategy": "no",
        "record_selection": True,
        "options": {"callbacks": [sizes]},
    }
    trainer = make_trainer(tmp_path, rows=rows, **changes)
    sizes.parts = {**vars(trainer), "callbacks": trainer.callback_handler.callbacks}
    trainer.train()
    early, late = (
        {path: size for path, size in found.items() if not any(name in path for name in BOUNDED)}
        for found in sizes.found
    )
    assert len(early) > 30 and any("_ever_trained" in path for path in early)
    assert late == early


def test_the_ledger_keeps_so_many_steps_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "STEPS_KEPT", 10)
    written = SelectionLedger(tmp_path / "selections.parquet")
    for step in range(1, 46):
        written.record(step, [step, 0])
        written.record_rejected(step, [step])
        assert all(len(batches) <= 10 for batches in written._pending.values())
    parts = sorted(path.name for path in written.path.glob("part-*"))
    assert len(parts) == 4 and read_selections(written.path)["step"].to_pylist()[-1] == 40
    assert read_rejected(written.path)["step"].to_pylist() == list(range(1, 41))  # no part ends within a step
    written.close()
    assert read_selections(written.path)["example_id"].to_pylist()[::2] == list(range(1, 46))


def test_the_ledger_keeps_so_many_rows_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "ROWS_PER_GROUP", 100)
    written = SelectionLedger(tmp_path / "selections.parquet")
    for step in range(1, 21):
        written.record(step, range(40))
        assert sum(map(len, written._pending["part-"])) <= 120
    assert len(list(written.path.glob("part-*"))) == 6


@pytest.mark.parametrize("n", [3, 9, 10, 11, 95])
def test_the_logging_window_keeps_so_many_values_and_no_more(n, monkeypatch):
    monkeypatch.setattr(statistics, "MOST_KEPT", 10)
    counts, values = RunStatistics(None, {}), np.random.default_rng(0).random(n)
    for number, value in enumerate(values):
        counts.add({"loss": value, **({"rare": torch.tensor(1.0)} if number % 7 == 0 else {})})
        assert all(len(kept) < 10 for kept in counts._window.values())
    means = counts.pop()
    assert means["loss"] == pytest.approx(values.mean(), abs=1e-15) and means["rare"] == 1
    assert n >= 10 or means["loss"] == np.mean(values)  # to the bit
    assert "loss" not in counts.pop()


def test_a_collator_keeps_no_reasons(caplog):
    collator = JESTDataCollator(tiny_siglip_processor())
    for _ in range(30):
        collator([{**GOOD, "image": None}] * 10)
    assert len(caplog.records) == 10
    found: dict[str, int] = {}
    walk("collator", collator, found, set())
    assert max(found.values()) < 50


def test_a_checkpoint_is_as_large_after_12_steps_as_after_3(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=12, save_strategy="steps", save_steps=3, record_selection=True)
    trainer.train()

    def sizes(step):
        folder = tmp_path / f"checkpoint-{step}"
        state = json.loads((folder / "trainer_state.json").read_text())
        own = len(json.dumps(state["stateful_callbacks"]))  # the logs are the Trainer's
        return own, {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "trainer_state.json"}

    (early, of_early), (late, of_late) = sizes(3), sizes(12)
    assert late <= early + 40  # numbers have more digits
    assert of_early.keys() == of_late.keys()
    assert all(abs(size - of_early[name]) <= 64 for name, size in of_late.items())


def test_the_benchmark_of_a_long_run(tmp_path, capsys):
    path = tmp_path / "result.json"
    long_run.main(["--steps", "6", "--rows", "100", "--save_steps", "2", "--every", "2", "--warm_up", "2",
                   "--results", str(path)])  # fmt: skip
    result = json.loads(path.read_text())
    assert [sample["step"] for sample in result["samples"]] == [2, 4, 6] == [c["step"] for c in result["checkpoints"]]
    assert 0.1 < result["broken_share"] < 0.3 and result["summary"]["checkpoint_cpu_seconds_last_third"] > 0
    assert "| step | memory, MiB |" in capsys.readouterr().out
