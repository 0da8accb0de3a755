# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
Fresh processes for the real clients of the Hub.

The clients read their endpoint when they are imported, so they cannot run in the process of the tests. One process is
started with the right environment, imports everything, and forks for each call: a fresh process for a hundredth of the
price.

In a call, nothing but this machine can be reached from Python, and waiting takes no time: what was to be waited for is
written down instead.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO


# deepspeed: accelerate imports it where it is installed.
PRELOADED = ("pytest", "deepspeed", "peft", "datasets", "transformers.pipelines", "jest_hf.trainer", "tests.trainers")
TIMEOUT = 120  # seconds for a call
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Setting:
    """Who calls, and from where."""

    home: Path
    token: str | None
    offline: bool
    xet: bool
    ends: bool


@dataclass
class Outcome:
    """What a call returned (or the type and the words of what it raised), printed and logged, and waited for."""

    value: Any = None
    error: str | None = None
    message: str = ""
    trace: str = ""
    log: str = ""
    waits: list[float] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    status: int = 0
    ended: float = 0.0  # seconds from the end of the call to the end of its process


class Failed(Exception):
    """A call raised; the message is the one of the error, `kind` the name of its type."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.kind, self.outcome = outcome.error, outcome


class Clients:
    """
    Calls functions in fresh processes whose Hub is at `endpoint`. Use it as a context manager.

    Calling it takes a module-level function, its arguments, and by keyword: `home`, the folder of all caches;
    `token`, or `None` for nobody; `offline`; `xet`, for the other transport; and `ends`, to end the process as Python
    ends one, and not at once. It returns an [`Outcome`] and raises [`Failed`].
    """

    def __init__(self, endpoint: str, home: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment |= {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # of data sets, at another machine
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": ",".join(LOOPBACK),
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.hub_server.clients import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=environment,
        )

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=10)

    def __call__(
        self,
        function: Callable[..., Any],
        *args: Any,
        home: Path,
        token: str | None = "hf_alice_writes",
        offline: bool = False,
        xet: bool = False,
        ends: bool = False,
        **kwargs: Any,
    ) -> Outcome:
        _write(self._process.stdin, (Setting(home, token, offline, xet, ends), pickle.dumps((function, args, kwargs))))
        outcome = _read(self._process.stdout)
        assert not outcome.strangers, f"asked for other machines: {outcome.strangers}"
        if outcome.error is not None:
            raise Failed(outcome)
        return outcome


def _write(stream: BinaryIO, value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _read(stream: BinaryIO) -> Any:
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError("the process of the clients is gone")
    return pickle.loads(stream.read(struct.unpack("<Q", header)[0]))


def serve() -> None:
    """Fork for each call that comes in; what the calls print goes into their outcomes."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    for name in PRELOADED:
        if importlib.util.find_spec(name.split(".")[0]) is not None:
            importlib.import_module(name)
    get_checkpoint_conversion_mapping("siglip")  # which transformers builds when it saves for the first time
    gc.freeze()  # or each child would look through all of that for garbage
    while True:
        try:
            call = _read(calls)
        except EOFError:
            return
        folder = Path(tempfile.mkdtemp())  # no block, which a child that ends would leave
        child = os.fork()
        if child == 0:
            _work(folder, *call)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            outcome = pickle.loads((folder / "outcome").read_bytes())
            outcome.ended = time.time() - (folder / "outcome").stat().st_mtime
        except FileNotFoundError:
            outcome = Outcome(error="Died", message="the process died without a word")
        outcome.status, outcome.log = status, (folder / "log").read_text(errors="replace")
        shutil.rmtree(folder)
        _write(answers, outcome)


def _work(folder: Path, setting: Setting, call: bytes) -> None:
    signal.alarm(TIMEOUT)  # which ends a process that hangs
    outcome = Outcome()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        _set_up(outcome, setting)
        function, args, kwargs = pickle.loads(call)
        outcome.value = function(*args, **kwargs)
    except BaseException as error:
        outcome.error, outcome.message = type(error).__name__, str(error)
        outcome.trace = traceback.format_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / "outcome").write_bytes(pickle.dumps(outcome))
    if setting.ends:
        sys.exit()
    os._exit(0)


def _set_up(outcome: Outcome, setting: Setting) -> None:
    import datasets.config
    from huggingface_hub import constants

    for name, folder in {
        "HF_HOME": "",
        "HF_HUB_CACHE": "hub",
        "HF_XET_CACHE": "xet",
        "HF_TOKEN_PATH": "token",
    }.items():
        setattr(constants, name, str(setting.home / folder))
        os.environ[name] = str(setting.home / folder)
    datasets.config.HF_DATASETS_CACHE = setting.home / "datasets"
    if setting.token is not None:
        os.environ["HF_TOKEN"] = setting.token
    constants.HF_HUB_OFFLINE = setting.offline
    constants.HF_HUB_DISABLE_XET = not setting.xet

    # It is on another machine, whose address datasets makes from the endpoint's.
    datasets.utils._dataset_viewer.get_session = None

    time.sleep = outcome.waits.append

    def stay_here(event: str, arguments: tuple[Any, ...]) -> None:
        host = None
        if event == "socket.getaddrinfo":
            host = arguments[0]
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            host = arguments[1][0]
        if host is not None and host not in LOOPBACK:
            outcome.strangers.append(str(host))
            raise OSError(f"{host} is not on this machine")

    sys.addaudithook(stay_here)
