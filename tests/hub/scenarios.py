# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Faults of the Hub by generator: each kind of fault at each request of a push or a pull, for once and for good.

One process makes its trainer once, tells the Hub which fault comes next, and pushes or pulls.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers import tiny_siglip_processor
from tests.hub.test_publisher import make


REPO = "alice/run"
STATUSES = (401, 403, 404, 409, 413, 429, 500, 502, 503, 504)
FOREVER = 10_000
ODD = {
    "an empty answer": {"body": ""},
    "an answer that is no JSON": {"body": "<html>Please log in to this network</html>"},
    "an answer without what is needed": {"body": "{}"},
    "a redirect to itself": {"redirects": True},
    "a connection cut within the answer": {"cut": 5},
    "a connection reset within the answer": {"cut": 5, "reset": True},
    "a lost answer": {"deaf": True},
    "a slow answer": {"seconds": 0.1},
}
OF_UPLOADS = {"a connection reset within the request": {"hang_up_after": 10}}
OF_DOWNLOADS = {
    "a wrong byte": {"corrupt": True},
    "an answer that is cut short and says so": {"shorten_to": 20},
    "half of an answer": {"cut": 300},
}
SILENCE = {"no answer within the time": {"seconds": 2.0}}
PUSH = {
    "create": ("POST", "/repos/create"),
    "card": ("POST", "/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "upload": ("PUT", "/_lfs/"),
    "verify": ("POST", "/verify"),
    "commit": ("POST", "/commit/"),
}
PULL = {
    "revision": ("GET", "/revision/"),
    "list": ("GET", "/tree/"),
    "metadata": ("HEAD", "/resolve/"),
    "small file": ("GET", "/config.json"),
    "weights": ("GET", "^/_cdn/"),
}


@dataclass(frozen=True)
class Scenario:
    """A fault at one request: its first `times` requests fail."""

    request: str
    kind: str
    times: int
    fault: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.request}: {self.kind}, {'once' if self.times == 1 else 'always'}"


@dataclass
class Tried:
    """What became of a scenario."""

    name: str
    hits: int = 0  # how often the fault came
    error: str | None = None  # type of what was raised
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    there: bool = False  # whether the Hub, or the folder of a pull, holds the right weights
    kept: bool = True  # whether the local output is as it was


def scenarios(request: str, requests: dict[str, tuple[str, str]], odd: dict[str, dict[str, Any]]) -> list[Scenario]:
    """All faults at one of the requests."""
    method, path = requests[request]
    kinds = {str(status): {"status": status} for status in STATUSES}
    kinds["429 with Retry-After"] = {"status": 429, "headers": {"Retry-After": "1"}}
    at = {"method": method, "path": path}
    every = [
        Scenario(request, kind, n, {**at, **fault}) for kind, fault in (kinds | odd).items() for n in (1, FOREVER)
    ]
    return every + [Scenario(request, kind, 1, {**at, **fault}) for kind, fault in SILENCE.items()]


def of_push(request: str) -> list[Scenario]:
    return scenarios(request, PUSH, ODD | OF_UPLOADS)


def of_pull(request: str) -> list[Scenario]:
    return scenarios(request, PULL, ODD | OF_DOWNLOADS)


def order(**what: Any) -> dict[str, Any]:
    """Give the Hub an order; see `Hub.control`."""
    from huggingface_hub import constants

    request = urllib.request.Request(f"{constants.ENDPOINT}/_control", json.dumps(what).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


class Warnings(logging.Handler):
    """Collects what is said at level WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("jest_hf").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def take(self) -> list[str]:
        said, self.said = self.said, []
        return said


def impatient() -> None:
    """Wait half a second for an answer, and not a minute."""
    from huggingface_hub import constants

    from jest_hf.hub import retries, uploads

    retries.ANSWER = constants.HF_HUB_ETAG_TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.5
    uploads.PROBE, uploads.SILENCE = 0.5, 1.0


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "README.md"  # which is made anew for each push
    }


def try_all(scenarios: list[Scenario], attempt: Any, weights: str = "") -> list[Tried]:
    """Call `attempt(tried)` under each fault; a push has succeeded if the Hub then holds weights of this sha256."""
    impatient()
    warnings, found = Warnings(), []
    for scenario in scenarios:
        tried = Tried(scenario.name)
        order(faults=[{**scenario.fault, "times": scenario.times}], forget=[REPO])
        try:
            attempt(tried)
        except BaseException as error:
            tried.error, tried.message = type(error).__name__, str(error)
        tried.warnings = warnings.take()
        state = order()
        tried.hits = scenario.times - state["left"][0]
        tried.there |= state["files"].get(REPO, {}).get("model.safetensors") == weights
        found.append(tried)
    return found


def push_by_hand(folder: str, request: str) -> list[Tried]:
    """`trainer.push_to_hub()` under each fault of a request."""
    out = Path(folder)
    trainer = make(folder, processor=tiny_siglip_processor(max_length=64), hub_model_id=REPO)
    trainer.save_model()
    before = digests(out)

    def attempt(tried: Tried) -> None:
        trainer.hub_model_id = None
        try:
            trainer.push_to_hub()
        finally:
            tried.kept = before.items() <= digests(out).items()

    return try_all(of_push(request), attempt, before["model.safetensors"])


def push_while_training(folder: str, request: str) -> list[Tried]:
    """The push of a checkpoint and the end of training under each fault of a request."""
    out, settings = Path(folder), {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    processor = tiny_siglip_processor(max_length=64)
    trainer = make(
        folder, processor=processor, hub_model_id=REPO, push_to_hub=True, hub_strategy="checkpoint", **settings
    )
    trainer.train()
    before = digests(out)

    def attempt(tried: Tried) -> None:
        trainer.hub_model_id = trainer.push_in_progress = None
        trainer.plan.publisher._has_warned = False
        trainer.is_in_train = True
        try:
            trainer._push_from_checkpoint(str(out / "checkpoint-1"))
            trainer._finish_current_push()
        finally:
            trainer.is_in_train = False
            tried.kept = before.items() <= digests(out).items()

    return try_all(of_push(request), attempt, before["model.safetensors"])


def pull(folder: str, request: str) -> list[Tried]:
    """A pull into an empty cache under each fault of a request."""
    from huggingface_hub import constants

    from jest_hf.hub import pull_model

    right = digests(Path(folder))

    def attempt(tried: Tried) -> None:
        constants.HF_HUB_CACHE = tempfile.mkdtemp()
        try:
            snapshot = pull_model("alice/reference")
            pulled = digests(snapshot.folder)
            tried.there = right.items() >= pulled.items() and {"model.safetensors", "config.json"} <= pulled.keys()
        finally:
            shutil.rmtree(constants.HF_HUB_CACHE)

    return try_all(of_pull(request), attempt)
