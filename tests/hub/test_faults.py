# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
What happens when the Hub fails: one test for each fault, named after the fault and its outcome.

A fault is retried, mended, or told in one sentence; a training run goes on, and nothing of it is lost.
"""

from __future__ import annotations

import errno
import re
import resource
from pathlib import Path

import pytest

from tests.helpers import tiny_siglip_processor
from tests.hub.test_publisher import make, same, state_of, train
from tests.hub.test_pull import files_of, has_weights_of, pull, push_folder, refused
from tests.hub_server import Failed
from tests.hub_server.faults import GATED


WEIGHTS = r"^/_cdn/"
BUSY = {"status": 503, "headers": {"Retry-After": "1"}}
RATE_LIMITED = {"status": 429, "headers": {"Retry-After": "1"}}


@pytest.fixture
def reference(hub, tmp_path):
    return hub.put("alice/reference", files_of(tmp_path / "reference"))


# ---- While pulling: retried, resumed or mended ----


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("GET", "/revision/main", BUSY),
        ("GET", "/tree/", BUSY),
        ("GET", "/revision/main", RATE_LIMITED),
        ("HEAD", "/model.safetensors", BUSY),
        ("HEAD", "/model.safetensors", RATE_LIMITED),
        ("GET", "/config.json", BUSY),  # of which the client alone would die
        ("GET", WEIGHTS, BUSY),
        ("GET", WEIGHTS, RATE_LIMITED),
        ("GET", WEIGHTS, {"cut": 20_000}),  # FIN, after a Content-Length that promised more
        ("GET", WEIGHTS, {"cut": 20_000, "reset": True}),  # RST, of which the client alone would die
        ("GET", WEIGHTS, {"shorten_to": 20_000}),
        ("GET", "/revision/main", {"deaf": True}),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value)).strip("-"),
)
def test_pull_survives(hub, client, reference, method, path, fault):
    injected = hub.fail(method, path, **fault)
    outcome = client(pull)
    assert injected.times == 0
    assert outcome.value["commit"] == reference and has_weights_of(outcome.value, 1)
    if "headers" in fault and method == "GET":  # the client asks for a file's metadata again at once
        assert sum(outcome.waits) >= 1


def test_wrong_bytes_of_the_right_length_are_downloaded_again(hub, client, reference):
    hub.fail("GET", WEIGHTS, corrupt=True)
    outcome = client(pull)
    assert has_weights_of(outcome.value, 1)
    assert "is not what the Hub holds; downloading it again" in outcome.log
    assert len(hub.asked("GET", "/_cdn/")) == 2


def test_a_wrong_configuration_is_downloaded_again(hub, client, reference):
    hub.fail("GET", "/config.json", corrupt=True)
    assert "the copy of config.json" in client(pull).log


def test_wrong_bytes_twice_are_refused(hub, client, reference):
    hub.fail("GET", WEIGHTS, corrupt=True, times=2)
    message = refused(client)
    assert "model.safetensors" in message and "even after it was downloaded again" in message
    assert has_weights_of(client(pull).value, 1)  # and the next run mends it


def test_xet_survives(hub, client, tmp_path):
    hub.cas = tmp_path / "cas"
    files_of(tmp_path / "reference")
    write = hub.fail("GET", "/xet-write-token/", **BUSY)
    commit = client(push_folder, str(tmp_path / "reference"), xet=True).value
    read = hub.fail("GET", "/xet-read-token/", **BUSY)
    assert client(pull, xet=True).value["commit"] == commit
    assert (write.times, read.times) == (0, 0)


@pytest.mark.parametrize("offline", [False, True])
def test_a_file_truncated_in_the_cache(hub, client, reference, offline):
    client(pull)
    cached = next(path for path in client.home.rglob("model.safetensors")).resolve()
    cached.write_bytes(cached.read_bytes()[:-100])
    if offline:
        assert "unset HF_HUB_OFFLINE to download it again" in refused(client, offline=True)
    else:
        assert has_weights_of(client(pull).value, 1)


def test_a_hub_that_is_down_is_no_obstacle_to_a_cached_reference(hub, client, reference):
    client(pull)
    hub.fail("GET", "/revision/main", status=503, times=100)
    assert client(pull).value["commit"] == reference


# ---- While pulling: one sentence ----


@pytest.mark.parametrize(
    ("method", "path", "fault", "words"),
    [
        ("GET", "/revision/", {"status": 401}, "was refused (401 injected); log in"),
        ("GET", "/revision/", {"status": 403}, "was refused (403 injected); log in"),
        ("HEAD", "/resolve/", {"status": 403}, "was refused (403 injected); log in"),
        ("HEAD", "/resolve/", {"status": 403, "headers": GATED}, "is gated and this account has no access to it"),
        ("HEAD", "/resolve/", {"status": 404}, "could not be pulled .*404 injected"),
        ("GET", "/revision/", {"status": 503}, "could not be pulled from http://.*(503 injected); try again later"),
        ("GET", WEIGHTS, {"cut": 20_000, "reset": True}, "could not be pulled from http://.*; try again later"),
    ],
)
def test_pull_gives_up(hub, client, reference, method, path, fault, words):
    hub.fail(method, path, times=100, **fault)
    message = refused(client)
    assert re.search(words.replace("(", r"\(").replace(")", r"\)"), message), message
    assert "ref_model='alice/reference'" in message


def pull_on_a_full_disk():
    """The weights do not fit: the client's own write fails half-way through."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    return pull()


def test_a_full_disk_is_told_at_once(hub, client, reference):
    with pytest.raises(Failed, match="could not be pulled .*File too large") as failed:
        client(pull_on_a_full_disk)
    assert not failed.value.outcome.waits
    assert has_weights_of(client(pull).value, 1)  # once there is room


# ---- While training: a warning, and nothing lost ----

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "hub_model_id": "alice/run"}


def warnings_of(outcome) -> list[str]:
    return [line for line in outcome.log.split("\n") if "A push to" in line]


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("POST", "/preupload/", BUSY),
        ("POST", "/objects/batch", RATE_LIMITED),
        ("PUT", "/_lfs/", {"status": 500}),
        ("PUT", "/_lfs/", {"hang_up_after": 10_000}),
        ("POST", "/verify", BUSY),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value)).strip("-"),
)
def test_the_client_retries_an_upload(hub, client, tmp_path, method, path, fault):
    injected = hub.fail(method, path, **fault)
    outcome = client(train, str(tmp_path / "out"), **EVERY_STEP, hub_strategy="checkpoint", hub_always_push=True)
    assert injected.times == 0 and not warnings_of(outcome)
    assert_pushed(hub, outcome)


@pytest.mark.parametrize("n_failures", [1, 2])
def test_an_older_checkpoint_is_not_pushed_over_a_newer_one(hub, client, tmp_path, n_failures):
    hub.fail("POST", "/commit/", times=n_failures, status=412)
    outcome = client(train, str(tmp_path / "out"), **EVERY_STEP, hub_strategy="all_checkpoints", hub_always_push=True)
    assert len(warnings_of(outcome)) == 1
    assert_pushed(hub, outcome)


def assert_pushed(hub, outcome):
    """What was trained is what is on the Hub."""
    from safetensors.numpy import load

    pushed = load(hub.repo("alice/run").head.files["model.safetensors"].data)
    assert same(pushed, outcome.value["state"])


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503},
        {"status": 409},
        {"status": 412},
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"deaf": True},  # the commit is made, and its answer lost
        {"hang_up_after": 10},
    ],
    ids=str,
)
def test_a_failed_commit_is_warned_about_and_repeated(hub, client, tmp_path, fault):
    """The last pushes of a run fail in the background, where the Trainer does not look."""
    injected = hub.fail("POST", "/commit/", times=2, **fault)
    settings = {**EVERY_STEP, "hub_strategy": "checkpoint", "max_steps": 1}
    outcome = client(train, str(tmp_path / "out"), **settings)
    (warning,) = warnings_of(outcome)
    assert "A push to 'alice/run' failed (" in warning and "nothing is lost" in warning
    assert "push it later with `hf upload alice/run" in warning
    assert "checkpoint-1" in outcome.value["checkpoints"]
    assert injected.times == 0
    assert_pushed(hub, outcome)
    assert "last-checkpoint/optimizer.pt" in hub.repo("alice/run").head.files


@pytest.mark.parametrize("status", [403, 404])
def test_a_push_that_is_refused_throughout(hub, client, tmp_path, status):
    hub.fail("POST", "/preupload/", status=status, times=100)
    outcome = client(train, str(tmp_path / "out"), **EVERY_STEP, hub_always_push=True)
    assert len(warnings_of(outcome)) == 1 and f"({status} injected)" in warnings_of(outcome)[0]
    assert {"checkpoint-1", "checkpoint-2", "model.safetensors"} <= set(outcome.value["checkpoints"])
    hub.faults.clear()
    assert_pushed_later(hub, client, tmp_path, warnings_of(outcome)[0], outcome)


def assert_pushed_later(hub, client, tmp_path, warning, outcome):
    """What the warning tells to do brings everything."""
    command = re.search(r"`(hf upload .*?)`", warning)[1]
    client(run_hf, command)
    assert_pushed(hub, outcome)
    assert not [path for path in hub.repo("alice/run").head.files if path.startswith("checkpoint-")]


def run_hf(command):
    import shlex
    import sys

    from huggingface_hub.cli.hf import main

    sys.argv = shlex.split(command)
    try:
        main()
    except SystemExit as end:
        assert not end.code


def test_a_token_revoked_while_training(hub, client, tmp_path):
    hub.fail("POST", "/(preupload|commit)/", times=100, status=401, error="Invalid credentials")
    outcome = client(train, str(tmp_path / "out"), **EVERY_STEP)
    assert "401 Invalid credentials" in warnings_of(outcome)[0]


def train_on_a_full_disk(folder, **changes):
    """The copy that the Trainer makes of the checkpoint's weights fails, on the main thread."""
    import shutil

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.copy = full
    return train(folder, **changes)


def test_a_full_disk_while_preparing_a_push(hub, client, tmp_path):
    outcome = client(train_on_a_full_disk, str(tmp_path / "out"), **EVERY_STEP)
    assert len(warnings_of(outcome)) == 1 and "No space left on device" in warnings_of(outcome)[0]
    assert {"checkpoint-1", "checkpoint-2"} <= set(outcome.value["checkpoints"])


# ---- Before training ----


def test_a_hub_that_is_down_at_the_start(hub, client, tmp_path):
    """The repository is made by the first push that gets through."""
    hub.fail("POST", "/repos/create", times=3, **BUSY)
    outcome = client(train, str(tmp_path / "out"), **EVERY_STEP)
    assert len(warnings_of(outcome)) == 1
    assert_pushed(hub, outcome)


def test_a_hub_that_is_busy_for_a_moment_at_the_start(hub, client, tmp_path):
    hub.fail("POST", "/repos/create", times=2, **BUSY)
    outcome = client(train, str(tmp_path / "out"), **EVERY_STEP)
    assert not warnings_of(outcome)
    assert_pushed(hub, outcome)


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        ({"token": "hf_expired"}, {}, r"'alice/run' cannot be used \(401 Invalid credentials"),
        ({"token": None}, {}, r"'alice/run' cannot be used \(401 Invalid username"),
        ({"token": "hf_bob_writes"}, {}, r"'alice/run' cannot be used \(403 You don't have the rights"),
        ({"offline": True}, {}, r"'alice/run' cannot be used \(OfflineModeIsEnabled"),
    ],
)
def test_a_push_that_can_never_work_is_told_before_training(hub, client, tmp_path, options, changes, words):
    with pytest.raises(Failed, match=words) as failed:
        client(train, str(tmp_path / "out"), **EVERY_STEP, **changes, **options)
    message = str(failed.value)
    assert failed.value.kind == "OSError" and "\n" not in message
    assert "log in with `hf auth login`" in message and "expired" not in message


# ---- trainer.push_to_hub() ----


def push(folder):
    trainer = make(folder, processor=tiny_siglip_processor(max_length=64), hub_model_id="alice/run")
    trainer.push_to_hub()
    return {"state": state_of(trainer.model)}


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/repos/create", {"status": 503}),
        ("/commit/", {"status": 503}),
        ("/commit/", {"status": 412, "error": "The branch was updated since you opened this page."}),
        ("/commit/", {"status": 409}),
        ("/commit/", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("/commit/", {"deaf": True}),
        ("/commit/", {"cut": 10, "reset": True}),
    ],
    ids=str,
)
def test_push_to_hub_is_repeated(hub, client, tmp_path, path, fault):
    injected = hub.fail("POST", path, **fault)
    outcome = client(push, str(tmp_path / "out"))
    assert injected.times == 0
    assert_pushed(hub, outcome)
    commits = [commit.title for commit in hub.repo("alice/run").history(hub.repo("alice/run").head)]
    assert commits == ["End of training", "initial commit"]  # and not one more where the answer was lost


@pytest.mark.parametrize(
    ("path", "fault", "words"),
    [
        ("/commit/", {"status": 503}, "(503 injected)"),
        ("/preupload/", {"status": 403}, "(403 injected)"),
        ("/repos/create", {"status": 401}, "(401 injected)"),
        ("/validate-yaml", {"status": 400}, "Invalid metadata in README.md"),
    ],
)
def test_push_to_hub_gives_up_in_one_sentence(hub, client, tmp_path, path, fault, words):
    hub.fail("POST", path, times=100, **fault)
    with pytest.raises(Failed) as failed:
        client(push, str(tmp_path / "out"))
    message = str(failed.value)
    assert failed.value.kind == "OSError" and "\n" not in message, message
    assert "the push to 'alice/run' failed" in message and words in message
    assert "push it later with `hf upload alice/run" in message
    assert (tmp_path / "out" / "model.safetensors").is_file() or path == "/repos/create"


def test_push_to_hub_of_xet_where_the_hub_has_none(hub, client, tmp_path):
    """The client does not fall back to the other transport."""
    with pytest.raises(Failed, match="the push to 'alice/run' failed .*; what was saved is kept") as failed:
        client(push, str(tmp_path / "out"), xet=True)
    assert failed.value.kind == "OSError" and "\n" not in str(failed.value)


def save_by_hand(folder):
    make(folder, processor=tiny_siglip_processor(max_length=64), push_to_hub=True).save_model()


def test_saving_by_hand_saves_although_the_push_fails(hub, client, tmp_path):
    hub.fail("POST", "/preupload/", status=403, times=100)
    outcome = client(save_by_hand, str(tmp_path / "out"))
    assert len(warnings_of(outcome)) == 1
    assert Path(tmp_path / "out" / "model.safetensors").is_file()
