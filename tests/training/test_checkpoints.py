# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole, half-written, damaged, or of an earlier version (kills: tests/kills)."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import Trainer

from jest_hf.report import read_selections
from jest_hf.report.ledger import ledger_steps
from jest_hf.training.checkpoints import LOCK, MANIFEST, check_checkpoint, complete_checkpoint
from tests.helpers import random_rows
from tests.trainers import make_trainer


SAVING = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of three steps, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    make_trainer(folder, **SAVING).train()
    return folder


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def warnings(caplog, monkeypatch):
    for name in ("jest_hf", "transformers"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    return caplog


def half_written(checkpoint):
    (checkpoint / MANIFEST).write_text('{"complete": false}')
    (checkpoint / "trainer_state.json").unlink()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def resumed_from(folder, resume=True, **changes):
    """The step that a run of five steps starts from."""
    trainer = make_trainer(folder, max_steps=5, **{**SAVING, **changes})
    steps = []
    trainer.training_step = lambda *args, **kwargs: steps.append(trainer.state.global_step) or torch.tensor(0.0)
    trainer.train(resume_from_checkpoint=resume)
    return steps[0]


def test_a_manifest_names_every_file(saved):
    for step in (1, 2, 3):
        checkpoint = saved / f"checkpoint-{step}"
        check_checkpoint(checkpoint)
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
        assert manifest["complete"] and set(manifest["files"]) == files - {MANIFEST}
        assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"} <= files


def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_kept_aside(run, warnings):
    half_written(run / "checkpoint-3")
    flip(run / "checkpoint-2" / "optimizer.pt")
    assert resumed_from(run, save_total_limit=2) == 1
    said = [record.getMessage() for record in warnings.records if "It is kept as" in record.getMessage()]
    assert said == [
        f"{run}/checkpoint-3 is half-written: its run ended while it was saving. It is kept as "
        f"incomplete-checkpoint-3, and training resumes from {run}/checkpoint-1.",
        f"{run}/checkpoint-2/optimizer.pt is damaged (its contents are not those that were saved); resume from "
        f"another checkpoint. It is kept as incomplete-checkpoint-2, and training resumes from {run}/checkpoint-1.",
    ]
    assert {path.name for path in run.glob("*checkpoint*")} == {
        "checkpoint-4", "checkpoint-5", "incomplete-checkpoint-2", "incomplete-checkpoint-3",
    }  # fmt: skip


def test_no_whole_checkpoint_is_one_sentence_for_each(run):
    for step in (1, 2, 3):
        half_written(run / f"checkpoint-{step}")
    with pytest.raises(ValueError, match="no checkpoint is whole; start without it.*checkpoint-3 is half-written"):
        make_trainer(run, **SAVING).train(resume_from_checkpoint=True)
    assert len(list(run.glob("checkpoint-*"))) == 3  # nothing is renamed for nothing


def test_a_half_written_checkpoint_does_not_count_for_save_total_limit(run):
    """Its number is the highest, and where times are not reliable the Trainer goes by numbers."""
    (run / "checkpoint-3").rename(run / "checkpoint-9")
    half_written(run / "checkpoint-9")
    for path in run.glob("checkpoint-*"):
        os.utime(path, (1, 1))
    assert resumed_from(run, str(run / "checkpoint-2"), save_total_limit=1) == 2
    assert {path.name for path in run.glob("*checkpoint*")} == {"checkpoint-5", "incomplete-checkpoint-9"}


def cut(path):
    os.truncate(path, 100)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
@pytest.mark.parametrize("damage", [flip, cut, remove])
def test_a_damaged_file_of_a_named_checkpoint_is_an_error_with_its_name(run, name, damage):
    damage(run / "checkpoint-2" / name)
    with pytest.raises(ValueError, match=f"{name} is {'missing' if damage is remove else 'damaged'}"):
        make_trainer(run, **SAVING).train(resume_from_checkpoint=str(run / "checkpoint-2"))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", cut, "model.safetensors is damaged"),
        ("optimizer.pt", cut, "optimizer.pt is damaged"),
        ("optimizer.pt", flip, "optimizer.pt is damaged"),
        ("rng_state.pth", flip, "rng_state.pth is damaged"),
        ("trainer_state.json", cut, "trainer_state.json is damaged"),
        ("trainer_state.json", remove, "checkpoint-2 is half-written"),
    ],
)
def test_damage_that_shows_in_a_checkpoint_of_an_earlier_version(run, name, damage, words):
    as_of_an_earlier_version(run / "checkpoint-2")
    damage(run / "checkpoint-2" / name)
    with pytest.raises(ValueError, match=words):
        check_checkpoint(run / "checkpoint-2")


def as_of_an_earlier_version(checkpoint):
    (checkpoint / MANIFEST).unlink()
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    del state["stateful_callbacks"]["RunStatistics"]["attributes"]["manifest"]
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("resume", [True, "named"])
def test_a_checkpoint_of_an_earlier_version_is_accepted(run, resume):
    as_of_an_earlier_version(run / "checkpoint-3")
    assert resumed_from(run, str(run / "checkpoint-3") if resume == "named" else resume) == 3


def test_a_checkpoint_that_has_lost_its_manifest_is_a_part(run):
    """As when a process is killed that removes it."""
    (run / "checkpoint-2" / MANIFEST).unlink()
    with pytest.raises(ValueError, match=f"{MANIFEST} is missing"):
        check_checkpoint(run / "checkpoint-2")


def test_the_manifest_is_there_before_older_checkpoints_are_removed_and_before_the_push(tmp_path, monkeypatch):
    from transformers import trainer as trainer_module

    seen = []

    def rotate(output_dir, **kwargs):
        seen.append({path.name: json.loads((path / MANIFEST).read_text())["complete"] for path in paths()})

    def paths():
        return sorted(tmp_path.glob("checkpoint-*"))

    monkeypatch.setattr(trainer_module, "rotate_checkpoints", rotate)
    trainer = make_trainer(tmp_path, max_steps=2, **SAVING)
    monkeypatch.setattr(
        trainer, "_save_scaler", lambda folder: seen.append(json.loads((tmp_path / folder / MANIFEST).read_text()))
    )
    trainer.train()
    assert seen == [
        {"complete": False}, {"checkpoint-1": True},
        {"complete": False}, {"checkpoint-1": True, "checkpoint-2": True},
    ]  # fmt: skip


def test_the_selections_of_a_checkpoint_are_on_the_disk_before_the_checkpoint(tmp_path, monkeypatch):
    save, steps_on_the_disk = Trainer._save_checkpoint, []

    def observed(trainer, model, trial):
        steps_on_the_disk.append(ledger_steps(tmp_path / "selections.parquet"))
        save(trainer, model, trial)

    monkeypatch.setattr(Trainer, "_save_checkpoint", observed)
    make_trainer(tmp_path, record_selection=True, max_steps=4, save_strategy="steps", save_steps=2).train()
    assert steps_on_the_disk == [(1, 2), (1, 4)]


def test_a_damaged_best_model_is_an_error(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, **SAVING}
    trainer = make_trainer(tmp_path, options={"eval_dataset": random_rows(16)}, **options)

    def spoil(args, state, control, **kwargs):
        if state.global_step == 3:
            flip(tmp_path / f"checkpoint-{state.best_global_step}" / "model.safetensors")

    trainer.callback_handler.callbacks[-1].on_save = spoil
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        trainer.train()


def test_a_foreign_folder_and_no_folder(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        check_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="half-written"):
        check_checkpoint(tmp_path / "empty")


def test_a_file_that_comes_later_is_no_damage(run):
    (run / "checkpoint-2" / "notes.txt").write_text("mine")
    check_checkpoint(run / "checkpoint-2")
    complete_checkpoint(run / "checkpoint-2")
    (run / "checkpoint-2" / "notes.txt").write_text("changed")
    with pytest.raises(ValueError, match="notes.txt is damaged"):
        check_checkpoint(run / "checkpoint-2")


# ---- The ledger and the counts of a run that goes on ----


def test_ctrl_c_before_the_first_checkpoint_keeps_the_selections(tmp_path):
    trainer = make_trainer(tmp_path, record_selection=True)
    learn = trainer.learn

    def interrupted(*args, **kwargs):
        if trainer.state.global_step == 1:
            raise KeyboardInterrupt
        return learn(*args, **kwargs)

    trainer.learn = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert set(read_selections(tmp_path / "selections.parquet")["step"].to_pylist()) == {1, 2}
    make_trainer(tmp_path, record_selection=True).train()  # its folder is free again
    assert set(read_selections(tmp_path / "selections.parquet")["step"].to_pylist()) == {1, 2, 3}
    assert set(read_selections(tmp_path / "selections-1.parquet")["step"].to_pylist()) == {1, 2}


def test_restored_callbacks_do_not_reset_the_counts(run):
    totals = []
    for restore in (False, True):
        trainer = make_trainer(run, restore_callback_states_from_checkpoint=restore)
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
        totals.append(trainer.statistics.totals())
        counted = [one for one in trainer.callback_handler.callbacks if type(one).__name__ == "RunStatistics"]
        assert counted == [trainer.statistics]
    assert totals[0] == totals[1] and totals[0]["examples_seen"] == 3 * 32


def test_resuming_with_another_loss_reference_or_order_is_said(run, warnings):
    from tests.helpers import tiny_siglip

    rows = random_rows(80)
    cases = [
        ({"loss": "softmax"}, "loss was 'sigmoid' and is 'softmax'"),
        ({"reference": tiny_siglip(7)}, "ref_model was weights"),
        ({"rows": rows[::-1]}, "train_dataset was rows"),
        ({"rows": rows + rows[:8]}, "the number of training rows was 80 and is 88"),
        ({"n_chunks": 2}, "n_chunks was 4 and is 2"),
        ({"seed": 5}, "seed was 42 and is 5"),
        ({"selection_gain": 3.0}, "selection_gain was"),
        ({}, None),
    ]
    for changes, expected in cases:
        warnings.clear()
        make_trainer(run, **changes).train(resume_from_checkpoint=str(run / "checkpoint-2"))
        said = [record.getMessage() for record in warnings.records if "other settings" in record.getMessage()]
        assert len(said) == (expected is not None), (changes, said)
        assert expected is None or expected in said[0], said


LOCKED = """
import sys
from jest_hf.files import lock

assert lock(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no locks, and SIGKILL is a POSIX signal")
def test_two_runs_that_save_in_one_folder_are_refused_until_the_first_has_died(run):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LOCKED, run / LOCK], **pipes) as other:
        assert other.stdout.readline() == b"locked\n"
        half_written(run / "checkpoint-3")
        with pytest.raises(ValueError, match=f"another run is saving checkpoints in {run}; wait for its end, or set"):
            resumed_from(run)
        assert (run / "checkpoint-3").exists(), "the checkpoint that the other run is saving was set aside"
        make_trainer(run, save_strategy="no").train()  # saves nothing there
        other.kill()
    assert resumed_from(run) == 2
    assert not (run / LOCK).exists()


def test_a_run_that_fails_gives_its_folder_back(run):
    trainer = make_trainer(run, **SAVING)
    trainer.training_step = None
    with pytest.raises(TypeError):
        trainer.train()
    assert not (run / LOCK).exists()


def test_the_trials_of_a_search_have_folders_of_their_own(tmp_path):
    trainer = make_trainer(tmp_path, **SAVING)
    with trainer.plan.checkpoints.running(None, alone=False):
        assert not (tmp_path / LOCK).exists()
    with trainer.plan.checkpoints.running(None):
        assert (tmp_path / LOCK).exists()
