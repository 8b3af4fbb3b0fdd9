"""A local server that answers the endpoints of the Hub that huggingface_hub's client asks: repositories in memory, nothing else.

Permissions are by token; commits, LFS objects, branches, gated repositories and cut-off uploads are real enough to be refused or resumed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_LARGE = (".safetensors", ".onnx", ".onnx_data", ".engine")


@dataclass
class Repo:
    """One model repository."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """commit → path → content"""
    branches: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    gated: Any = False
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        name = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        self.messages.append(message)
        return name

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Hub(ThreadingHTTPServer):
    """The server and its state."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        """LFS objects by SHA-256"""
        self.tokens = {"writer": ("me", {"me"}), "reader": ("me", set())}
        """token → account, namespaces that it may write to"""
        self.uploads: list[str] = []
        """LFS objects that were sent, as they came"""
        self.cut_after: int | None = None
        """number of LFS uploads after which the line is cut"""
        self.asked: list[str] = []
        self.corrupts: str | None = None
        """a file of which another content is stored than was sent"""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, private: bool = False, files: dict[str, bytes] | None = None, **about: Any) -> Repo:
        repo = self.repos[name] = Repo(private, **about)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}, "initial commit")
        return repo


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A running server."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self._chunks()
        else:
            self.body = self.rfile.read(length)
        try:
            path = unquote(urlsplit(self.path).path)
            for method, pattern, function in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found and method == self.command:
                    function(self, *found.groups())
                    return
            raise _Refusal(404, f"no such endpoint: {self.command} {path}")
        except _Refusal as refusal:
            self._send(refusal.status, json.dumps({"error": str(refusal)}).encode(), {
                "X-Error-Message": str(refusal), **({"X-Error-Code": refusal.code} if refusal.code else {}),
            })  # fmt: skip

    do_GET = do_POST = do_PUT = do_HEAD = _answer

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    def _account(self) -> tuple[str | None, set[str]]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return self.server.tokens.get(token, (None, set()))

    def _repo(self, name: str, write: bool = False) -> Repo:
        account, writes = self._account()
        owner = name.partition("/")[0]
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and account != owner):
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        if write and owner not in writes:
            raise _Refusal(403, "you don't have the rights to write to this repository")
        return repo

    def _files(self, name: str, revision: str) -> tuple[Repo, str, dict[str, bytes]]:
        repo = self._repo(name)
        commit = repo.find(revision)
        if commit is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, commit, repo.commits[commit]

    def whoami(self) -> None:
        account, _ = self._account()
        if account is None:
            raise _Refusal(401, "Invalid username or password.")
        self._json({"type": "user", "name": account, "orgs": []})

    def create(self) -> None:
        wanted = json.loads(self.body)
        account, writes = self._account()
        owner = wanted.get("organization") or account
        name = f"{owner}/{wanted['name']}"
        if owner not in writes:
            raise _Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if name in self.server.repos:
            raise _Refusal(409, "You already created this model repo")
        self.server.add(name, wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self._json({"url": f"{self.server.url}/{name}"})

    def info(self, name: str, revision: str | None = None) -> None:
        repo, commit, files = self._files(name, revision or "main")
        self._json({
            "id": name, "modelId": name, "sha": commit, "private": repo.private, "gated": repo.gated, "cardData": repo.card, "tags": [], "downloads": 0,
            "siblings": [{"rfilename": path, **self._about(path, content)} for path, content in files.items()],
        })  # fmt: skip

    def tree(self, name: str, revision: str, _: str = "") -> None:
        files = self._files(name, revision)[2]
        found = []
        for path, content in files.items():
            about = self._about(path, content)
            entry = {"type": "file", "path": path, "size": about["size"], "oid": about["blobId"]}
            found.append(entry | ({"lfs": {**about["lfs"], "oid": about["lfs"]["sha256"]}} if "lfs" in about else {}))
        self._json(found)

    @staticmethod
    def _about(path: str, content: bytes) -> dict[str, Any]:
        about: dict[str, Any] = {"size": len(content), "blobId": _blob(content)}
        if path.endswith(_LARGE):
            about["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return about

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        self._json({"errors": [], "warnings": [] if content.startswith("---\n") else [{"message": "empty metadata"}]})

    def branch(self, name: str, branch: str) -> None:
        repo = self._repo(name, write=True)
        if branch in repo.branches:
            raise _Refusal(409, "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self._json({})

    def preupload(self, name: str, revision: str) -> None:
        self._repo(name, write=True)
        files = self._files(name, revision)[2]
        answers = []
        for entry in json.loads(self.body)["files"]:
            path = entry["path"]
            large = path.endswith(_LARGE)
            there = files.get(path)
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else _blob(there)
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def batch(self, name: str) -> None:
        self._repo(name, write=True)
        found = []
        for entry in json.loads(self.body)["objects"]:
            known = entry["oid"] in self.server.objects
            actions = {} if known else {"actions": {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}}
            found.append({"oid": entry["oid"], "size": entry["size"], **actions})
        self._json({"transfer": "basic", "objects": found})

    def put(self, oid: str) -> None:
        if self.server.cut_after is not None and len(self.server.uploads) >= self.server.cut_after:
            raise _Refusal(400, "the line was cut")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, "another content than was announced")
        self.server.objects[oid] = self.body
        self.server.uploads.append(oid)
        self._send(200)

    def commit(self, name: str, branch: str) -> None:
        repo = self._repo(name, write=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repo.branches.get(branch)):
            raise _Refusal(412, "the branch has moved")
        files = dict(repo.commits[repo.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise _Refusal(400, f"no object {value['oid']}")
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        if self.server.corrupts in files:
            files[self.server.corrupts] = files[self.server.corrupts] + b"!"
        commit = repo.commit(branch, files, header["summary"])
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def resolve(self, name: str, revision: str, path: str) -> None:
        _, commit, files = self._files(name, revision)
        if path not in files:
            raise _Refusal(404, "Entry not found", "EntryNotFound")
        content = files[path]
        about = self._about(path, content)
        etag = about["lfs"]["sha256"] if "lfs" in about else about["blobId"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            self._send(206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})
        else:
            self._send(200, content, headers)


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("GET", f"/api/models/{_NAME}/revision/(.+)", _Handler.info),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)(/.*)?", _Handler.tree),
    ("POST", f"/api/models/{_NAME}/branch/(.+)", _Handler.branch),
    ("POST", f"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
    ("POST", f"/{_NAME}\\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", _Handler.put),
    ("GET", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
