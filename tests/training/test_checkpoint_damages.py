# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every file of a checkpoint, damaged in many ways: a run resumes from an older whole checkpoint and says so, or ends
with the name of the file. No damaged file is ever loaded (kills: tests/kills)."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jest_hf.distributed import Ranks
from jest_hf.training.checkpoints import MANIFEST, Checkpoints, check_checkpoint
from tests.trainers import arguments, make_trainer


SETTINGS = {"save_strategy": "steps", "save_steps": 1, "scoring": "proxy", "max_steps": 3}
NEWEST, OLDER = "checkpoint-3", "checkpoint-2"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with a proxy, and a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    make_trainer(folder, **SETTINGS).train()
    return folder


@pytest.fixture(scope="module")
def run(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, in which every test mends what it has damaged."""
    return Path(shutil.copytree(saved, tmp_path_factory.mktemp("damaged") / "run"))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    for name in ("jest_hf", "transformers"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    return caplog


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(share * path.stat().st_size))


def without_the_last_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flipped(place: float, bit: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(place * len(data)), len(data) - 1)] ^= 1 << bit
        path.write_bytes(data)

    return damage


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def of_the_older(path: Path) -> None:
    """The file of the same name in the checkpoint before, where it differs."""
    other = Path(str(path).replace(NEWEST, OLDER))
    path.write_bytes(other.read_bytes() if other.read_bytes() != path.read_bytes() else path.read_bytes()[::-1])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "deleted": Path.unlink,
    "emptied": cut(0),
    "half": cut(0.5),
    "last byte": without_the_last_byte,
    "longer": longer,
    "zeros": zeros,
    "of the older checkpoint": of_the_older,
    "a folder": a_folder,
    **{f"bit at {place}": flipped(place, bit) for place, bit in ((0, 0), (0.1, 5), (0.4, 2), (0.75, 1), (1, 4))},
}


def files_of(checkpoint: Path) -> list[str]:
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


def resumed(run: Path, resume: Any) -> Any:
    """The checkpoint that a run resumes from."""
    with Checkpoints(arguments(run), Ranks()).running(resume) as checkpoint:
        return checkpoint


def test_no_damaged_file_of_any_kind_is_loaded(run: Path, warnings: pytest.LogCaptureFixture) -> None:
    tried = 0
    for file, damage in product(files_of(run / NEWEST), DAMAGES):
        checkpoint, aside = run / NEWEST, run / f"incomplete-{NEWEST}"
        path = checkpoint / file
        whole, named = path.read_bytes(), f"{file} {damage}"
        DAMAGES[damage](path)
        if named == f"{MANIFEST} last byte":  # a newline, which JSON needs not
            assert json.loads(path.read_bytes()) == json.loads(whole)
            path.write_bytes(whole)
            continue
        with pytest.raises(ValueError) as refused:
            resumed(run, str(checkpoint))
        assert str(checkpoint) in str(refused.value) and "\n" not in str(refused.value), named
        if file != MANIFEST:
            assert str(path) in str(refused.value), named
        warnings.clear()
        assert resumed(run, True) == str(run / OLDER), named
        (said,) = (record.getMessage() for record in warnings.records)
        assert str(refused.value) in said and said.endswith(f"training resumes from {run / OLDER}."), named
        aside.rename(checkpoint)
        if path.is_dir():
            path.rmdir()
        path.write_bytes(whole)
        check_checkpoint(checkpoint)
        tried += 1
    assert tried == len(DAMAGES) * len(files_of(run / NEWEST)) - 1 >= 100


def test_every_bit_of_a_manifest(run: Path) -> None:
    """One bit of each byte: the manifest is not whole, or names a file that is not as it says."""
    path = run / NEWEST / MANIFEST
    whole = path.read_bytes()
    accepted = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 7
        path.write_bytes(data)
        try:
            check_checkpoint(run / NEWEST)
        except ValueError as error:
            assert str(run / NEWEST) in str(error)
        else:  # a space in place of another one: JSON reads the same
            assert json.loads(data) == json.loads(whole)
            accepted += 1
    path.write_bytes(whole)
    assert accepted < len(whole) / 10


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_files_that_two_checkpoints_have_exchanged_make_both_unusable(saved: Path, tmp_path: Path, file: str) -> None:
    run = Path(shutil.copytree(saved, tmp_path / "run"))
    first, second = run / OLDER / file, run / NEWEST / file
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    assert resumed(run, True) == str(run / "checkpoint-1")


@pytest.mark.parametrize(
    ("file", "damage"), [("optimizer.pt", "bit at 0.4"), ("proxy/model.safetensors", "half"), (MANIFEST, "deleted")]
)
def test_a_run_that_falls_back_ends_with_the_same_weights(saved: Path, tmp_path: Path, file: str, damage: str) -> None:
    run = Path(shutil.copytree(saved, tmp_path / "run"))
    DAMAGES[damage](run / NEWEST / file)
    trainer = make_trainer(run, **SETTINGS)
    trainer.train(resume_from_checkpoint=True)
    sound = load_file(saved / NEWEST / "model.safetensors")
    found = load_file(run / NEWEST / "model.safetensors")
    assert found.keys() == sound.keys() and all(torch.equal(found[name], sound[name]) for name in sound)
    assert (run / f"incomplete-{NEWEST}").exists()
