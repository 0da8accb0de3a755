# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Requests to the Hub that are tried again: a busy Hub and a lost connection are temporary. None waits for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from huggingface_hub import get_session
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: see can_pass
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
)


WAITS = (1.0, 4.0)  # seconds before the second and third try
ANSWER = 60.0  # seconds without a byte of an answer, where the client has no limit
LONGEST_WAIT = 60  # seconds, where a busy Hub sends a longer Retry-After
# Statuses of temporary errors: the Hub is busy or restarting, or another push came first (409, 412).
PASSING = (408, 409, 412, 429, 500, 502, 503, 504)


def limit_waits() -> None:
    """Give the client's requests a time limit where they have none: huggingface_hub 2.4 waits for ever for most."""
    client = get_session()
    hooks = client.event_hooks
    if _limit_wait not in hooks["request"]:
        client.event_hooks = {**hooks, "request": [*hooks["request"], _limit_wait]}


def _limit_wait(request: Any) -> None:
    """Called before each request. A limit of the client is not enough: some requests say that they have none."""
    limits = {"connect": None, "read": None, "write": None, "pool": None, **request.extensions.get("timeout", {})}
    request.extensions["timeout"] = {one: ANSWER if limit is None else limit for one, limit in limits.items()}


def can_pass(error: BaseException) -> bool:
    """Return whether an error of the Hub's client is temporary, such as a busy Hub or a lost connection."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # HTTPError comes from the library of the connection, which differs with the version of the client.
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError))


def try_repeatedly(action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function, up to three times if it fails with a temporary error ([`can_pass`]).

    Args:
        action (`Callable`): The function.
        args, kwargs: Arguments of the function.

    Raises:
        Exception: the error of the last call.
    """
    for wait in WAITS:
        limit_waits()
        try:
            return action(*args, **kwargs)
        except Exception as error:
            if not can_pass(error):
                raise
            time.sleep(max(wait, _retry_after(error)))
    limit_waits()
    return action(*args, **kwargs)


def _retry_after(error: BaseException) -> float:
    """Return the seconds in the Hub's `Retry-After` header, at most [`LONGEST_WAIT`]; 0 without the header."""
    seconds = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(seconds), LONGEST_WAIT) if seconds.isdigit() else 0.0


__all__ = ["WAITS", "can_pass", "limit_waits", "try_repeatedly"]
