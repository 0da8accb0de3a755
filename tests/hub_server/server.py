# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""
The Hub's HTTP interface, as far as huggingface_hub, transformers and datasets ask for it to push and to pull.

Large files are given out by "another machine", the same port under the name localhost, as the Hub gives them out by
its CDN: a token that is sent there is a token given away.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_server.api import Answer, Api, Refusal
from tests.hub_server.faults import Fault, fault_of
from tests.hub_server.repos import Blob, Commit, Repo, stored_as_lfs


@dataclass
class Request:
    """A request, as it was recorded; `status` is 0 where it got no answer."""

    method: str
    target: str  # path and query
    headers: dict[str, str]  # names in lower case
    body: bytes = b""
    status: int = 0

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    @property
    def host(self) -> str:
        return self.headers.get("host", "").split(":")[0]


class Hub:
    """
    A Hub with users, repositories, faults to come and a record of what was asked. Use it as a context manager.

    Attributes:
        users (`dict[str, str]`): Names by token.
        repos (`dict[tuple[str, str], Repo]`): Repositories by kind and name.
        lfs (`dict[str, bytes]`): Uploaded objects by sha256.
        requests (`list[Request]`): Everything that was asked.
        faults (`list[Fault]`): See [`Hub.fail`].
        part_size (`int`, *optional*): LFS objects above this size are requested in parts.
        cas (`Path`, *optional*): The folder in which clients that speak Xet keep the content of files.
    """

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://localhost:{self.port}/_cdn"
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Forget everything but the port."""
        self.users = {"hf_alice_writes": "alice", "hf_bob_writes": "bob"}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.part_size: int | None = None
        self.cas: Path | None = None
        self.api = Api(self)

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.reset()
        self._server.shutdown()
        self._server.server_close()

    def fail(self, method: str, path: str, **fault: Any) -> Fault:
        """Let matching requests fail; the arguments are those of [`Fault`]."""
        self.faults.append(Fault(method, path, **fault))
        return self.faults[-1]

    def control(self, order: dict[str, Any]) -> dict[str, Any]:
        """
        Follow an order that a client sends to `/_control`: a process that tries many faults can do it without the
        test's. `forget` names repositories that are gone, with all uploads; `faults` are those from now on.

        Returns:
            `dict`: `left`, how often each of the last faults would still have come; and `files`, by repository the
            sha256 of each file.
        """
        with self.lock:
            left = [fault.times for fault in self.faults]
            files = {
                name: {path: hashlib.sha256(blob.data).hexdigest() for path, blob in repo.head.files.items()}
                for (_, name), repo in self.repos.items()
            }
            for name in order.get("forget", ()):
                self.repos = {key: repo for key, repo in self.repos.items() if key[1] != name}
                self.lfs.clear()
            self.requests = []
            self.faults = []
            for fault in order.get("faults", ()):
                self.fail(**fault_of(**fault))
        return {"left": left, "files": files}

    def hold(self, until: Callable[[], bool]) -> None:
        """Wait until a condition holds, or the Hub is reset."""
        requests = self.requests
        while not until() and self.requests is requests:
            time.sleep(0.01)

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.matches(method, path):
                    fault.times -= 1
                    return fault
        return None

    def repo(self, name: str, kind: str = "models") -> Repo:
        return self.repos[kind, name]

    def put(self, name: str, files: dict[str, bytes], kind: str = "models", branch: str = "main", **about: Any) -> str:
        """Commit files without a client, LFS where the Hub would; the commit's id."""
        repo = self.repos.setdefault((kind, name), Repo(kind, name, **about))
        parent = repo.find(branch) or repo.head
        blobs = {path: Blob(data, stored_as_lfs(path, len(data))) for path, data in files.items()}
        commit = Commit({**parent.files, **blobs}, "put", parent.oid)
        repo.add(commit, branch)
        return commit.oid

    def asked(self, method: str, path: str = "") -> list[Request]:
        """The recorded requests with this method whose path contains `path`."""
        return [request for request in self.requests if request.method == method and path in request.path]


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, lets it fail if it is due to, and sends what the [`Api`] answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client went away, which some faults make it do
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Say nothing: requests are in `Hub.requests`."""

    def _serve(self) -> None:
        hub: Hub = self.server.hub
        if self.path == "/_control":
            return self._send(Answer(200, hub.control(json.loads(self._read_body()))), None)
        request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        with hub.lock:
            hub.requests.append(request)
        fault = hub.take_fault(request.method, request.path)
        if fault is not None and fault.hang_up_after is not None:
            self.rfile.read(min(fault.hang_up_after, int(self.headers.get("content-length", 0))))
            return self._hang_up(reset=True)
        request.body = self._read_body()
        if fault is not None and fault.until is not None:
            hub.hold(fault.until)
        if fault is not None and fault.status is not None:
            answer = Refusal(fault.status, fault.error, fault.headers).answer
        elif fault is not None and fault.body is not None:
            answer = Answer(200, fault.body, {"Content-Type": "application/json"})
        elif fault is not None and fault.redirects:
            answer = Answer(307, b"", {"Location": request.target})
        else:
            answer = hub.api(request)
        if fault is not None and fault.deaf:
            return self._hang_up(fault.reset)
        request.status = answer.status
        self._send(answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        body = answer.body if fault is None else fault.spoil(answer.body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is not None and fault.cut is not None:
            self.wfile.write(body[: fault.cut])
            return self._hang_up(fault.reset)
        self.wfile.write(body)

    def _hang_up(self, reset: bool) -> None:
        self.close_connection = True
        self.wfile.flush()
        if reset:  # no lingering: what is not yet sent or read is thrown away, and the other side sees a RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
