# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What can be made to go wrong with a request."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fault:
    """
    The next `times` requests that match fail, each in this way.

    Args:
        method (`str`): `"GET"`, `"HEAD"`, `"POST"` or `"PUT"`.
        path (`str`): A regular expression that is searched for in the path.
        times (`int`): How often.
        status (`int`, *optional*): Answer this, and do nothing that was asked for.
        headers (`dict[str, str]`): Of that answer, for instance `Retry-After`.
        error (`str`): Its message.
        hang_up_after (`int`, *optional*): Close the connection after so many bytes of the request's body.
        cut (`int`, *optional*): Close the connection after so many bytes of the answer's body.
        reset (`bool`): Close it with a RST, as a crashed machine or a firewall does, and not with a FIN.
        deaf (`bool`): Do what was asked for, and hang up without an answer.
        corrupt (`bool`): Change one byte in the middle of the answer's body.
        shorten_to (`int`, *optional*): Answer with so many bytes, and a Content-Length that says so.
        body (`bytes`, *optional*): Answer 200 with this body.
        redirects (`bool`): Answer with a redirect to the same address.
        until (`Callable`, *optional*): Do nothing until it returns True; see `NEVER`.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    error: str = "injected"
    hang_up_after: int | None = None
    cut: int | None = None
    reset: bool = False
    deaf: bool = False
    corrupt: bool = False
    shorten_to: int | None = None
    body: bytes | None = None
    redirects: bool = False
    until: Callable[[], bool] | None = None

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and re.search(self.path, path) is not None

    def spoil(self, body: bytes) -> bytes:
        """The body that is sent in place of the right one."""
        if self.corrupt and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
        return body if self.shorten_to is None else body[: self.shorten_to]


def NEVER() -> bool:
    """The condition of a request that gets no answer before its [`Hub`] is reset."""
    return False


def fault_of(body: str | None = None, seconds: float | None = None, **fault: Any) -> dict[str, Any]:
    """The arguments of a [`Fault`] that came as JSON: its body is text, and it waits for some seconds, or for ever."""
    if seconds is not None:
        until = time.monotonic() + seconds
        fault["until"] = lambda: time.monotonic() > until
    return fault if body is None else {**fault, "body": body.encode()}


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}
REPO_NOT_FOUND = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
