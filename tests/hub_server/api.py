# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What each path of the Hub does, without sockets: an [`Api`] turns a request into an [`Answer`]."""

from __future__ import annotations

import base64
import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub_server.cards import problems
from tests.hub_server.faults import GATED, REPO_NOT_FOUND
from tests.hub_server.repos import Blob, Commit, Repo, XetBlob, stored_as_lfs, xet_files


if TYPE_CHECKING:
    from tests.hub_server.server import Hub, Request


API = r"/api/(models|datasets)/([^/]+/[^/]+)"
FILE = r"/(?:(datasets)/)?([^/]+/[^/]+)"


@dataclass
class Answer:
    """Status, body and headers; a body that is no `bytes` is sent as JSON."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.body, bytes):
            self.body = json.dumps(self.body).encode()
            self.headers = {"Content-Type": "application/json", **self.headers}


class Refusal(Exception):
    """An error answer, raised from wherever it is found to be due."""

    def __init__(self, status: int, error: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(error)
        self.answer = Answer(status, {"error": error}, {"X-Error-Message": error, **(headers or {})})


class Api:
    """The paths of the Hub; the state is that of the [`Hub`]."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.parts: dict[str, dict[int, bytes]] = {}
        self.routes = [
            ("GET", r"/api/whoami-v2", self.whoami),
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", self.validate_yaml),
            ("GET", API, self.info),
            ("GET", API + r"/revision/(.+)", self.info),
            ("GET", API + r"/tree/([^/]+)(?:/(.+))?", self.tree),
            ("POST", API + r"/paths-info/(.+)", self.paths_info),
            ("GET", API + r"/refs", self.refs),
            ("GET", API + r"/commits/(.+)", self.commits),
            ("POST", API + r"/branch/(.+)", self.create_branch),
            ("POST", API + r"/tag/(.+)", self.create_tag),
            ("POST", API + r"/preupload/(.+)", self.preupload),
            ("POST", API + r"/commit/(.+)", self.commit),
            ("POST", FILE + r"\.git/info/lfs/objects/batch", self.lfs_batch),
            ("POST", FILE + r"\.git/info/lfs/verify", self.lfs_verify),
            ("PUT", r"/_lfs/([0-9a-f]{64})(?:/(\d+))?", self.lfs_put),
            ("POST", r"/_lfs/([0-9a-f]{64})/complete", self.lfs_complete),
            ("GET", FILE + r"/resolve/([^/]+)/(.+)", self.resolve),
            ("GET", r"/_cdn/([0-9a-f]{64})", self.cdn),
            ("GET", API + r"/xet-(?:read|write)-token/(.+)", self.xet_token),
        ]

    def __call__(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        try:
            for wanted, pattern, action in self.routes:
                # Unquoted only when taken apart: a slash in the name of a branch is a %2F in the path.
                if method == wanted and (found := re.fullmatch(pattern, urlsplit(request.target).path)):
                    with self.hub.lock:
                        return action(request, *(group and unquote(group) for group in found.groups()))
            raise Refusal(404, f"no such path: {request.method} {request.path}")
        except Refusal as refusal:
            return refusal.answer

    # ---- Who may do what ----

    def user(self, request: Request) -> str | None:
        """Who is asking; nobody without a token, and never anybody with a wrong one."""
        if request.token is None:
            return None
        if request.token not in self.hub.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.users[request.token]

    def repo(self, request: Request, kind: str | None, name: str, write: bool = False) -> Repo:
        user = self.user(request)
        repo = self.hub.repos.get((kind or "models", name))
        if repo is None or (repo.private and user != repo.owner):
            raise Refusal(401 if user is None else 404, "Repository not found", REPO_NOT_FOUND)
        if write and user != repo.owner:
            raise Refusal(401 if user is None else 403, f"You don't have the rights to write to {name}")
        return repo

    def at(self, repo: Repo, revision: str | None) -> Commit:
        commit = repo.find(revision or "main")
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", {"X-Error-Code": "RevisionNotFound"})
        return commit

    # ---- Accounts and repositories ----

    def whoami(self, request: Request) -> Answer:
        user = self.user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return Answer(body={"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"accessToken": {}}})

    def create(self, request: Request) -> Answer:
        user, asked = self.user(request), json.loads(request.body)
        owner = asked.get("organization") or user
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if owner != user:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        kind = asked.get("type", "model") + "s"
        name = f"{owner}/{asked['name']}"
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.hub.repos:
            return Answer(409, {"error": "You already created this model repo", "url": url})
        self.hub.repos[kind, name] = Repo(kind, name, private=asked.get("visibility") == "private")
        return Answer(body={"url": url, "name": name})

    def validate_yaml(self, request: Request) -> Answer:
        """The front matter of a card has to be YAML, and what it says has to be what the Hub takes."""
        asked = json.loads(request.body)
        found = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", asked["content"], re.DOTALL)
        try:
            metadata = (yaml.safe_load(found[1]) if found else None) or {}
            is_mapping = isinstance(metadata, dict)
            errors = problems(metadata, asked["repoType"]) if is_mapping else ["the metadata are no mapping"]
        except yaml.YAMLError as error:
            errors = [f"the metadata are no YAML: {error}"]
        return Answer(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def info(self, request: Request, kind: str, name: str, revision: str | None = None) -> Answer:
        repo = self.repo(request, kind, name)
        return Answer(body=repo.describe(self.at(repo, revision)))

    def tree(self, request: Request, kind: str, name: str, revision: str, folder: str | None) -> Answer:
        repo = self.repo(request, kind, name)
        entries = repo.tree(self.at(repo, revision), folder or "", request.query.get("recursive") == "true")
        if entries is None:
            raise Refusal(404, f"{folder} does not exist on {revision}", {"X-Error-Code": "EntryNotFound"})
        return Answer(body=entries)

    def paths_info(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repo = self.repo(request, kind, name)
        files = self.at(repo, revision).files
        paths = parse_qs(request.body.decode()).get("paths", [])
        return Answer(body=[files[path].describe(path) for path in paths if path in files])

    def refs(self, request: Request, kind: str, name: str) -> Answer:
        repo = self.repo(request, kind, name)

        def listed(refs: dict[str, str], space: str) -> list[dict[str, str]]:
            return [{"name": ref, "ref": f"refs/{space}/{ref}", "targetCommit": oid} for ref, oid in refs.items()]

        return Answer(
            body={"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}
        )

    def commits(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repo = self.repo(request, kind, name)
        about = {"message": "", "authors": [{"user": repo.owner}], "date": "2026-01-01T00:00:00.000Z"}
        return Answer(
            body=[
                {"id": commit.oid, "title": commit.title, **about} for commit in repo.history(self.at(repo, revision))
            ]
        )

    def create_branch(self, request: Request, kind: str, name: str, branch: str) -> Answer:
        repo = self.repo(request, kind, name, write=True)
        if branch in repo.branches:
            raise Refusal(409, f"Reference already exists: {branch}")
        repo.branches[branch] = self.at(repo, json.loads(request.body or b"{}").get("startingPoint")).oid
        return Answer(body={})

    def create_tag(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repo = self.repo(request, kind, name, write=True)
        repo.tags[json.loads(request.body)["tag"]] = self.at(repo, revision).oid
        return Answer(body={})

    # ---- Uploads ----

    def preupload(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        repo = self.repo(request, kind, name, write=True)
        held = self.at(repo, revision).files
        files = []
        for asked in json.loads(request.body)["files"]:
            path = asked["path"]
            lfs = stored_as_lfs(path, asked["size"])
            about = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            files.append(about | ({"oid": held[path].etag} if path in held else {}))
        return Answer(body={"files": files})

    def lfs_batch(self, request: Request, kind: str | None, name: str) -> Answer:
        repo = self.repo(request, kind, name, write=True)
        objects = []
        for asked in json.loads(request.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            answer = {"oid": oid, "size": size}
            if oid not in self.hub.lfs:
                upload: dict[str, Any] = {"href": f"{self.hub.endpoint}/_lfs/{oid}"}
                if self.hub.part_size is not None and size > self.hub.part_size:
                    n_parts = -(-size // self.hub.part_size)
                    urls = {f"{part:05d}": f"{upload['href']}/{part}" for part in range(1, n_parts + 1)}
                    upload = {
                        "href": f"{upload['href']}/complete",
                        "header": {"chunk_size": str(self.hub.part_size), **urls},
                    }
                prefix = "" if repo.kind == "models" else f"{repo.kind}/"
                verify = {"href": f"{self.hub.endpoint}/{prefix}{name}.git/info/lfs/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        multipart = any("header" in answer.get("actions", {}).get("upload", {}) for answer in objects)
        return Answer(body={"transfer": "multipart" if multipart else "basic", "objects": objects})

    def lfs_put(self, request: Request, oid: str, part: str | None) -> Answer:
        if part is None:
            return self._store(oid, request.body)
        self.parts.setdefault(oid, {})[int(part)] = request.body
        return Answer(headers={"ETag": f'"{part}"'})

    def lfs_complete(self, request: Request, oid: str) -> Answer:
        parts = self.parts.pop(oid)
        return self._store(oid, b"".join(parts[asked["partNumber"]] for asked in json.loads(request.body)["parts"]))

    def _store(self, oid: str, data: bytes) -> Answer:
        if Blob(data).sha256 != oid:
            raise Refusal(400, f"the bytes that were sent are not those of {oid}")
        self.hub.lfs[oid] = data
        return Answer()

    def lfs_verify(self, request: Request, kind: str | None, name: str) -> Answer:
        self.repo(request, kind, name, write=True)
        asked = json.loads(request.body)
        if len(self.hub.lfs.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, f"{asked['oid']} was not uploaded")
        return Answer(body={})

    def commit(self, request: Request, kind: str, name: str, branch: str) -> Answer:
        repo = self.repo(request, kind, name, write=True)
        parent = self.at(repo, branch)
        header, *operations = (json.loads(line) for line in request.body.splitlines() if line.strip())
        wanted = header["value"].get("parentCommit")
        if wanted not in (None, parent.oid):
            raise Refusal(412, "The branch was updated since you opened this page. Please refresh and try again.")
        files = dict(parent.files)
        for operation in operations:
            self._apply(files, operation["key"], operation["value"])
        commit = Commit(files, header["value"]["summary"], parent.oid)
        repo.add(commit, branch)
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{self.hub.endpoint}/{prefix}{name}/commit/{commit.oid}"
        return Answer(body={"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] in (shared := xet_files(self.hub.cas)):
                files[value["path"]] = XetBlob(b"", True, value["oid"], value["size"], shared[value["oid"]])
                return
            if value["oid"] not in self.hub.lfs:
                raise Refusal(400, f"the LFS object of {value['path']} was not uploaded")
            files[value["path"]] = Blob(self.hub.lfs[value["oid"]], lfs=True)
        else:  # deletedFile, deletedFolder
            gone = [
                path for path in files if path == value["path"] or path.startswith(value["path"].rstrip("/") + "/")
            ]
            if not gone:
                raise Refusal(404, f"{value['path']} is not there", {"X-Error-Code": "EntryNotFound"})
            for path in gone:
                del files[path]

    # ---- Downloads ----

    def resolve(self, request: Request, kind: str | None, name: str, revision: str, path: str) -> Answer:
        repo = self.repo(request, kind, name)
        user = self.user(request)
        if repo.gated and user != repo.owner and user not in repo.granted:
            raise Refusal(401 if user is None else 403, f"Access to model {name} is restricted.", GATED)
        commit = self.at(repo, revision)
        about = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        blob = commit.files.get(path)
        if blob is None:
            raise Refusal(404, "Entry not found", {**about, "X-Error-Code": "EntryNotFound"})
        if not blob.lfs:
            return self._bytes(request, blob.data, {**about, "ETag": f'"{blob.oid}"'})
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        if isinstance(blob, XetBlob):
            token_url = f"{self.hub.endpoint}/api/{repo.kind}/{name}/xet-read-token/{commit.oid}"
            linked |= {"X-Xet-Hash": blob.xet_hash, "Link": f'<{token_url}>; rel="xet-auth"'}
        else:
            self.hub.lfs[blob.sha256] = blob.data
        return Answer(302, headers={**about, **linked, "Location": f"{self.hub.cdn}/{blob.sha256}"})

    def cdn(self, request: Request, oid: str) -> Answer:
        return self._bytes(request, self.hub.lfs[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def xet_token(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        """Where the content of files is, and a token for it: hf_xet reads and writes a folder as it does a server."""
        self.repo(request, kind, name)
        if self.hub.cas is None:
            raise Refusal(404, "this Hub does not speak Xet")
        url, expires = f"local://{self.hub.cas}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expires)}
        return Answer(body={"casUrl": url, "accessToken": "xet", "exp": expires}, headers=headers)

    @staticmethod
    def _bytes(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if not found:
            return Answer(body=data, headers=headers)
        start, stop = int(found[1]), min(int(found[2] or len(data)) + 1, len(data))
        if start >= len(data):
            raise Refusal(416, "Range not satisfiable", {"Content-Range": f"bytes */{len(data)}"})
        return Answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
