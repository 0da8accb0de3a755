# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""At the end of training the Hub holds the newest checkpoint, or a sentence says that it does not; and the process
ends, whatever the Hub does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load
from transformers import TrainerCallback

from tests.helpers import tiny_siglip_processor
from tests.hub.test_faults import run_hf
from tests.hub.test_public_files import put_what_is_not_pushed
from tests.hub.test_publisher import make, same, state_of
from tests.hub.test_pull import files_of as reference_files
from tests.hub.test_pull import pull
from tests.hub_server import Failed
from tests.hub_server.faults import NEVER


EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "hub_model_id": "alice/run"}


class Marker(TrainerCallback):
    """Tells the test that no step is left: what was skipped until then stays skipped."""

    def on_train_end(self, args, state, control, **kwargs):
        Path(args.output_dir, "trained").touch()


def train(folder, **changes):
    trainer = make(folder, processor=tiny_siglip_processor(max_length=64), push_to_hub=True, **changes)
    trainer.add_callback(Marker())
    trainer.train()
    return state_of(trainer.model)


def files_of(hub):
    return hub.repo("alice/run").head.files


def missing(hub, folder: Path, name: str) -> set[str]:
    """The files of a local folder that the Hub does not have under `name`, byte for byte."""
    pushed = files_of(hub)
    local = {f"{name}/{path.relative_to(folder)}": path for path in folder.rglob("*") if path.is_file()}
    return {there for there, path in local.items() if there not in pushed or pushed[there].data != path.read_bytes()}


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_what_was_skipped_is_made_up(hub, client, tmp_path, strategy):
    """The first upload lasts until the last step, so that the Trainer skips all later ones."""
    out = tmp_path / "out"
    hub.fail("POST", "/preupload/", until=(out / "trained").exists)
    outcome = client(train, str(out), hub_strategy=strategy, **EVERY_STEP)
    assert same(load(files_of(hub)["model.safetensors"].data), outcome.value)
    folders = {path.split("/")[0] for path in files_of(hub) if "checkpoint" in path}
    if strategy == "checkpoint":
        assert folders == {"last-checkpoint"} and not missing(hub, out / "checkpoint-3", "last-checkpoint")
    elif strategy == "all_checkpoints":
        assert folders == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
        assert not [name for name in folders if missing(hub, out / name, name)]
    else:
        assert not folders
    assert "Training has ended" not in outcome.log and "A push to" not in outcome.log


def test_nothing_is_pushed_twice(hub, client, tmp_path):
    client(train, str(tmp_path / "out"), hub_strategy="all_checkpoints", hub_always_push=True, **EVERY_STEP)
    titles = [commit.title for commit in hub.repo("alice/run").history(hub.repo("alice/run").head)]
    assert len(titles) == len(set(titles)), titles


def test_a_checkpoint_that_failed_to_be_pushed_is_pushed_at_the_end(hub, client, tmp_path):
    """All other pushes succeed; only the list of the Hub's files shows the gap."""
    out = tmp_path / "out"
    hub.fail("POST", "/commit/", status=403, times=2)
    client(train, str(out), hub_strategy="all_checkpoints", hub_always_push=True, **EVERY_STEP)
    assert not [number for number in (1, 2, 3) if missing(hub, out / f"checkpoint-{number}", f"checkpoint-{number}")]


def test_checkpoints_of_another_run_in_the_folder_are_not_pushed(hub, client, tmp_path):
    (tmp_path / "out" / "checkpoint-100").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-100" / "model.safetensors").write_text("of another run")
    client(train, str(tmp_path / "out"), hub_strategy="all_checkpoints", **EVERY_STEP)
    assert not [path for path in files_of(hub) if path.startswith("checkpoint-100")]


@pytest.mark.parametrize(
    ("strategy", "method", "path", "what"),
    [
        ("every_save", "POST", "/commit/", "the model of checkpoint-3"),
        ("checkpoint", "POST", "/commit/", "the model of checkpoint-3"),
        ("all_checkpoints", "POST", "/commit/", "the model of checkpoint-3"),
        ("all_checkpoints", "GET", "/tree/", "all checkpoints up to checkpoint-3"),
    ],
)
def test_what_the_hub_lacks_in_the_end_is_said_with_the_command_that_pushes_it(
    hub, client, tmp_path, strategy, method, path, what
):
    out = tmp_path / "out"
    put_what_is_not_pushed(out, but=("checkpoint", "incomplete"))
    hub.fail(method, path, status=500, times=1000)
    outcome = client(train, str(out), hub_strategy=strategy, **EVERY_STEP)
    (said,) = (line for line in outcome.log.split("\n") if "Training has ended" in line)
    assert f"'alice/run' on the Hub does not hold {what} (500 injected); {out} does, so push it later with `" in said
    hub.faults.clear()
    for command in re.search(r"`(hf upload .*?)` or trainer.push_to_hub", said)[1].split(" && "):
        client(run_hf, command)
    assert same(load(files_of(hub)["model.safetensors"].data), outcome.value)
    assert not [path for path, blob in files_of(hub).items() if blob.data == b"private"]
    there = {"checkpoint": "last-checkpoint", "all_checkpoints": "checkpoint-3"}
    if strategy in there:
        assert not missing(hub, out / "checkpoint-3", there[strategy])


# ---- The end of the process ----


def train_and_end(folder):
    from jest_hf.hub import uploads

    uploads.PROBE, uploads.SILENCE = 0.2, 0.5
    train(folder, hub_strategy="checkpoint", hub_always_push=True, **EVERY_STEP)


def push_and_end(folder):
    """A push that the script does not wait for."""
    from jest_hf.hub import uploads

    uploads.PROBE, uploads.SILENCE = 0.2, 0.5
    trainer = make(folder, processor=tiny_siglip_processor(max_length=64), hub_model_id="alice/run")
    trainer.push_to_hub(blocking=False)


def push_and_wait(folder):
    from jest_hf.hub import uploads

    uploads.PROBE, uploads.SILENCE = 0.2, 0.5
    make(folder, processor=tiny_siglip_processor(max_length=64), hub_model_id="alice/run").push_to_hub()


def test_a_push_that_is_waited_for_ends_although_the_hub_never_answers(hub, client, tmp_path):
    never_answers(hub, "POST", "/commit/")
    with pytest.raises(Failed, match="failed .the Hub has not answered for 0 s.*push it later with") as failed:
        client(push_and_wait, str(tmp_path / "out"), ends=True)
    assert failed.value.kind == "OSError" and failed.value.outcome.ended < 8


def pull_impatiently():
    from jest_hf.hub import retries

    retries.ANSWER = 0.5
    return pull()


@pytest.mark.parametrize("path", ["/revision/main", "/tree/"])
def test_a_pull_ends_although_the_hub_does_not_answer(hub, client, tmp_path, path):
    """The client waits for these two for ever."""
    hub.put("alice/reference", reference_files(tmp_path / "reference"))
    fault = hub.fail("GET", path, until=NEVER)
    assert client(pull_impatiently).value["commit"] == hub.repo("alice/reference").head.oid
    assert fault.times == 0


@pytest.mark.parametrize(
    ("function", "method", "path", "said"),
    [
        (train_and_end, "POST", "/preupload/", "it may not hold the newest checkpoint"),
        (train_and_end, "PUT", "/_lfs/", "it may not hold the newest checkpoint"),  # in a pool of threads
        (push_and_end, "POST", "/preupload/", "the process ends before its uploads to alice/run are over"),
    ],
)
def test_a_process_ends_although_the_hub_never_answers(hub, client, tmp_path, function, method, path, said):
    never_answers(hub, method, path)
    outcome = client(function, str(tmp_path / "out"), ends=True)
    assert outcome.status == 0 and hub.asked(method, path)
    assert outcome.log.count("The Hub has not answered for 0 s") == 1 and said in outcome.log
    assert "hf_alice" not in outcome.log and "Traceback" not in outcome.log
    assert outcome.ended < 8, "a request of the client waits for 10 seconds and more"


def never_answers(hub, method, path):
    hub.fail(method, path, times=1000, until=NEVER)
    hub.fail("HEAD", "^/$", times=1000, until=NEVER)


def test_a_script_ends_although_the_hub_never_answers(hub, tmp_path):
    """The same without the tests' client: nothing is patched but the bounds."""
    never_answers(hub, "PUT", "/_lfs/")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_alice_writes"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost"}
    code = f"from tests.hub.test_end_of_training import *; train_and_end({str(tmp_path / 'out')!r}); print('trained')"
    process = subprocess.Popen(
        [sys.executable, "-uc", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    lines, start = [], time.monotonic()
    for line in process.stdout:
        lines.append(line)
        if line == "trained\n":
            start = time.monotonic()
    assert process.wait() == 0 and lines[-1] == "trained\n", "".join(lines)
    assert time.monotonic() - start < 8
    assert any("it may not hold the newest checkpoint" in line for line in lines)


def test_a_process_does_not_end_before_a_push_that_goes_on(hub, client, tmp_path):
    """It goes on for longer than the Hub may be silent, and the Hub answers other requests meanwhile."""
    asked = []

    def after_two_seconds():
        asked.append(time.monotonic())
        return asked[-1] - asked[0] > 2

    hub.fail("POST", "/preupload/", until=after_two_seconds)
    outcome = client(push_and_end, str(tmp_path / "out"), ends=True)
    assert outcome.status == 0 and outcome.ended > 1 and "model.safetensors" in files_of(hub)
    assert "has not answered" not in outcome.log
