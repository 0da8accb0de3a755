# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Uploads in the background, for which the end of a process waits as long as the Hub answers.

Python joins the threads of the client's own background uploads before a process ends, also if the Hub never answers:
then a finished run keeps its machine for minutes. Here uploads run in daemon threads, which are waited for with a
bound. An upload starts a pool of threads for several large files. A thread started in a daemon thread is a daemon too,
but `concurrent.futures` joins it all the same, unless it is taken from the list of threads to join.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from concurrent.futures import Future
from concurrent.futures import thread as pools  # it registers a function that joins: ours has to run before that one
from queue import SimpleQueue
from typing import Any

from huggingface_hub import get_session
from transformers.utils import logging
from transformers.utils.hub import hf_api

from jest_hf.hub.retries import limit_waits


logger = logging.get_logger(__name__)

PROBE = 10.0  # seconds between two looks at whether the Hub still answers, while its uploads are waited for
SILENCE = 60.0  # seconds without an answer after which they are not
_RUNNING: dict[Future[Any], str] = {}  # the uploads of this process that are not over, and the repository of each


class Silent(TimeoutError):
    """The Hub has not answered for `SILENCE` seconds, during an upload."""


class Uploads:
    """Runs uploads one after the other in a thread that does not keep the process from its end."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[type[Uploads], tuple[()]]:
        return Uploads, ()  # a copy of a trainer, such as a trial of Ray has, makes its own thread

    def start(self, upload: Callable[[], Any], repository: str) -> Future[Any]:
        """Start an upload once those before it are over.

        Args:
            upload (`Callable`): Uploads, and returns when the upload is over.
            repository (`str`): For the message if the process ends before the upload.

        Returns:
            `Future`: the result of `upload`, or its exception.
        """
        job: Future[Any] = Future()
        _RUNNING[job] = repository
        job.add_done_callback(lambda done: _RUNNING.pop(done, None))
        self._queue.put((job, upload))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="jest_hf-uploads", daemon=True)
            self._thread.start()
        return job

    def end(self) -> None:
        """End the thread after the uploads that were started."""
        self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            job, upload = item
            if job.set_running_or_notify_cancel():
                try:
                    limit_waits()
                    result = upload()
                except BaseException as error:  # as futures do: whoever reads the result gets it
                    job.set_exception(error)
                else:
                    job.set_result(result)


def wait_to_upload(action: Callable[[], Any], repository: str) -> Any:
    """Upload, and wait for the end as long as the Hub answers: the client's own requests can wait for ever.

    Args:
        action (`Callable`): Uploads.
        repository (`str`): The repository.

    Returns:
        What `action` returns.

    Raises:
        Silent: if the Hub does not answer.
        Exception: what `action` raises.
    """
    uploads = Uploads()
    job = uploads.start(action, repository)
    uploads.end()
    try:
        if not wait_for(lambda: [job]):
            raise Silent(f"the Hub has not answered for {SILENCE:.0f} s")
    except BaseException:  # such as Ctrl-C, after which the end of the process does not wait either
        _RUNNING.pop(job, None)
        raise
    return job.result()


def wait_for(jobs: Callable[[], Iterable[Future[Any]]]) -> bool:
    """Wait for uploads as long as the Hub answers.

    Args:
        jobs (`Callable`): Returns the uploads.

    Returns:
        `bool`: whether they are over. If the Hub is silent for `SILENCE` seconds, they are given up: those that have
        not started are cancelled, and the end of the process waits for none of them.
    """
    heard = time.monotonic()
    while futures.wait(jobs(), timeout=PROBE).not_done:
        if answers():
            heard = time.monotonic()
        elif time.monotonic() - heard >= SILENCE:
            for job in jobs():
                job.cancel()
                _RUNNING.pop(job, None)
            return False
    return True


def answers() -> bool:
    """Return whether the Hub answers at all; an error is an answer."""
    try:
        get_session().head(hf_api().endpoint, timeout=PROBE)
    except Exception:  # of the library of the connection, which differs with the version of the client
        return False
    return True


def _at_exit() -> None:
    """Wait for the uploads that are still running, and keep Python from joining the threads of the others."""
    repositories = sorted(set(_RUNNING.values()))
    if repositories and not wait_for(lambda: list(_RUNNING)):
        logger.warning(
            f"The Hub has not answered for {SILENCE:.0f} s, so the process ends before its uploads to "
            f"{', '.join(repositories)} are over; what was saved is kept, so push it later."
        )
    for thread in list(getattr(pools, "_threads_queues", ())):
        if thread.daemon:
            pools._threads_queues.pop(thread, None)  # type: ignore[attr-defined]  # private, as is what joins them


# `atexit` would be too late: its functions run once all threads have been joined.
getattr(threading, "_register_atexit", lambda function: None)(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_RUNNING.clear)  # a forked process, such as a loader's worker, uploads nothing


__all__ = ["PROBE", "SILENCE", "Silent", "Uploads", "answers", "wait_for", "wait_to_upload"]
