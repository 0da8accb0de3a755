# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Faults of the Hub by generator: each kind of fault at each request of a push or a pull, once and always.

One process makes its trainer once, tells the Hub which fault comes next, and pushes or pulls. The tests try every
eighth scenario; `python -m tests.hub.scenarios` tries all of them, in some minutes.
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

    scenario: Scenario
    hits: int = 0  # how often the fault came
    error: str | None = None  # type of what was raised
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    there: bool = False  # whether the Hub, or the folder of a pull, holds the right weights
    kept: bool = True  # whether the local output is as it was


def scenarios(requests: dict[str, tuple[str, str]], odd: dict[str, dict[str, Any]]) -> list[Scenario]:
    """All faults at all of the requests."""
    kinds = {str(status): {"status": status} for status in STATUSES}
    kinds["429 with Retry-After"] = {"status": 429, "headers": {"Retry-After": "1"}}
    found = []
    for request, (method, path) in requests.items():
        at = {"method": method, "path": path}
        for kind, fault in (kinds | odd).items():
            found += [Scenario(request, kind, times, {**at, **fault}) for times in (1, FOREVER)]
        found += [Scenario(request, kind, 1, {**at, **fault}) for kind, fault in SILENCE.items()]
    return found


def of_pushes() -> list[Scenario]:
    """The scenarios of [`push_by_hand`] and [`push_while_training`]."""
    return scenarios(PUSH, ODD | OF_UPLOADS)


def of_pulls() -> list[Scenario]:
    """The scenarios of [`pull`]."""
    return scenarios(PULL, ODD | OF_DOWNLOADS)


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
        tried = Tried(scenario)
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


def push_by_hand(folder: str, scenarios: list[Scenario]) -> list[Tried]:
    """`trainer.push_to_hub()` under each fault."""
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

    return try_all(scenarios, attempt, before["model.safetensors"])


def push_while_training(folder: str, scenarios: list[Scenario]) -> list[Tried]:
    """The push of a checkpoint and the end of training under each fault."""
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

    return try_all(scenarios, attempt, before["model.safetensors"])


def pull(folder: str, scenarios: list[Scenario]) -> list[Tried]:
    """A pull into an empty cache under each fault."""
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

    return try_all(scenarios, attempt)


# ---- What must come of them ----

# Faults after which another try succeeds.
PASSING = {
    *("429", "429 with Retry-After", "500", "502", "503", "504", "a slow answer", "a lost answer"),
    *("a connection cut within the answer", "a connection reset within the answer", "half of an answer"),
    *("a connection reset within the request", "no answer within the time"),
}


def complaints(function: Any, tried: Tried) -> list[str]:
    """What is wrong with an outcome: it must be a success, or one sentence with the way out, and nothing is lost."""
    one, error, found = tried.scenario, tried.message, []
    said = " ".join([error, *tried.warnings])
    if tried.hits == 0:
        found.append("the fault never came")
    if not tried.kept:
        found.append("a local file has changed or is gone")
    if "hf_alice" in said:
        found.append("a token was said")
    if one.kind in PASSING and one.times == 1 and not tried.there:
        found.append("another try would have succeeded")
    if tried.error is None and not tried.there and function is not push_while_training:
        found.append("a success without the weights")
    if tried.error is not None and (tried.error != "OSError" or "\n" in error or not error.endswith(".")):
        found.append("no sentence")
    if function is push_by_hand and tried.error is not None and "push it later with `hf upload alice/run" not in error:
        found.append("no way out")
    if function is pull and tried.error is not None and not error.startswith("ref_model='alice/reference'"):
        found.append("an error that does not name its option")
    if function is push_while_training:
        if tried.error is not None:
            found.append("training died")
        ended = [line for line in tried.warnings if "Training has ended" in line or "has not answered" in line]
        if not tried.there and not (ended and "push it later with `hf upload alice/run" in ended[-1]):
            found.append("what the Hub lacks was not said")
    return [f"{function.__name__}, {one.name}: {wrong} ({tried.error}: {said})" for wrong in found]


def main() -> None:
    """Try all scenarios."""
    from tests.hub.test_pull import files_of
    from tests.hub_server import Clients, Hub

    folder = Path(tempfile.mkdtemp())
    wrong, n_tried, n_succeeded = [], 0, 0
    with Hub() as hub, Clients(hub.endpoint, folder / "home") as clients:
        hub.put("alice/reference", files_of(folder / "pull"))
        for function, every in ((push_by_hand, of_pushes()), (push_while_training, of_pushes()), (pull, of_pulls())):
            for start in range(0, len(every), 100):  # a call has a time limit
                part = every[start : start + 100]
                outcome = clients(function, str(folder / function.__name__), part, home=folder / "client")
                n_tried, n_succeeded = n_tried + len(part), n_succeeded + sum(one.there for one in outcome.value)
                wrong += [line for one in outcome.value for line in complaints(function, one)]
                print(f"{n_tried} scenarios, {n_succeeded} succeeded, {len(wrong)} complaints", flush=True)
    shutil.rmtree(folder)
    raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    from tests.hub.scenarios import main as run  # so that what is pickled is of this module, and not of __main__

    run()
