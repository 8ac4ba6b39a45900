"""A server on this host that speaks the protocol of the Hugging Face hub, and that of ModelScope.

The real clients are pointed to it (HF_ENDPOINT, MODELSCOPE_ENDPOINT). What it does wrong, it does
on purpose: refused, moved, gated and private repositories, answers that break off, silence.

    with HubServer() as hub:
        hub.add("org/model", directory)
        environment = hub.environment(tmp_path)
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".model")
"""Endings of the files that the hub keeps as large ones (git LFS): reached by a redirect."""
TOKEN = "hf_test"


@dataclass
class Repository:
    """A repository: its commits by hash, each with its files by name, and its branches and tags."""

    commits: dict[str, dict[str, bytes]]
    references: dict[str, str]
    gated: bool = False
    private: bool = False


@dataclass
class HubServer:
    """The server, in threads of this process.

    Attributes:
        repositories: by ORG/NAME.
        requests: method and path of each, in their order.
        break_off_after: bytes of a file's answer after which the connection is closed, by the
            file's name; taken out once used, unless `always_breaks` is set.
        silent_s: seconds to wait before any answer.
        status: answers every request with this error instead.
        served_instead: content to send in place of a file's, by its name.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    break_off_after: dict[str, int] = field(default_factory=dict)
    always_breaks: bool = False
    silent_s: float = 0.0
    status: int | None = None
    served_instead: dict[str, bytes] = field(default_factory=dict)

    def __enter__(self) -> "HubServer":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients that have ended
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment variables that point the clients to this server, with an empty home."""
        given = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "MODELS"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home / "hf"), "HF_HUB_ETAG_TIMEOUT": "3"}
        own |= {"MODELSCOPE_ENDPOINT": self.url, "MODELSCOPE_CACHE": str(home / "modelscope"), "HOME": str(home)}
        return {**given, **own, "HF_HUB_DISABLE_TELEMETRY": "1", **more}

    def add(self, name: str, files: Path | Mapping[str, bytes], *, branch: str = "main", **settings: Any) -> str:
        """Commits files to a branch of a repository, which is new or not; returns the commit."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        content = b"".join(name.encode() + hashlib.sha1(data).digest() for name, data in sorted(files.items()))
        commit = hashlib.sha1(content).hexdigest()
        repository = self.repositories.setdefault(name, Repository({}, {}))
        repository.commits[commit] = dict(files)
        repository.references[branch] = commit
        for setting, value in settings.items():
            setattr(repository, setting, value)
        return commit

    def downloads(self) -> list[str]:
        """Names of the files whose content was asked for, in their order."""
        found = (re.match(r"GET /[^/]+/[^/]+/resolve/[^/]+/(.+)", request) for request in self.requests)
        return [match[1] for match in found if match]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, is_head: bool) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        time.sleep(self.hub.silent_s)
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if self.hub.status is not None:
            self._send(self.hub.status, b"")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._describe(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+?)/?", path):
            self._list(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/[^/]+/[^/]+|[^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3], is_head)
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
            self._send_content(match[3], self.hub.repositories[match[1]].commits[match[2]][match[3]], {}, is_head)
        elif match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo/files", path):
            self._list_for_modelscope(match[1], query["Revision"][0])
        elif match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo", path):
            self._resolve(match[1], query["Revision"][0].replace("master", "main"), query["FilePath"][0], is_head, "")
        else:
            self._refuse(404, "", "no such address")

    def _commit(self, name: str, revision: str, needs_access: bool) -> str | None:
        """The commit of a revision; None after an error was sent."""
        repository = self.hub.repositories.get(name)
        allowed = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not allowed):
            self._refuse(404 if allowed else 401, "RepoNotFound", "Repository not found")
            return None
        if repository.gated and needs_access and not allowed:
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        commit = repository.references.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit

    def _describe(self, name: str, revision: str) -> None:
        commit = self._commit(name, revision, needs_access=False)
        if commit is None:
            return
        siblings = []
        for file, data in self.hub.repositories[name].commits[commit].items():
            facts: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": _git_sha1(data)}
            if file.endswith(LARGE):
                facts["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(facts)
        shown = {"_id": "1", "id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
        self._send_json({**shown, "private": False, "gated": False, "downloads": 0, "likes": 0})

    def _list(self, name: str, revision: str) -> None:
        commit = self._commit(name, revision, needs_access=False)
        if commit is None:
            return
        entries = []
        for file, data in self.hub.repositories[name].commits[commit].items():
            facts: dict[str, Any] = {"type": "file", "path": file, "size": len(data), "oid": _git_sha1(data)}
            if file.endswith(LARGE):
                facts["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(facts)
        self._send_json(entries)

    def _list_for_modelscope(self, name: str, revision: str) -> None:
        commit = self._commit(name, revision.replace("master", "main"), needs_access=False)
        if commit is None:
            return
        files = [
            {"Path": file, "Name": file, "Size": len(data), "Type": "blob", "Sha256": hashlib.sha256(data).hexdigest()}
            for file, data in self.hub.repositories[name].commits[commit].items()
        ]
        self._send_json({"Code": 200, "Success": True, "Data": {"Files": files}})

    def _resolve(self, name: str, revision: str, file: str, is_head: bool, redirect: str = "/cdn") -> None:
        commit = self._commit(name, revision, needs_access=True)
        if commit is None:
            return
        data = self.hub.repositories[name].commits[commit].get(file)
        if data is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_sha1(data)}"'}
        if file.endswith(LARGE) and redirect:
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            self._send(
                302,
                b"",
                {
                    **headers,
                    "Location": self.hub.url.replace("127.0.0.1", "localhost") + f"{redirect}/{name}/{commit}/{file}",
                },
            )
        else:
            self._send_content(file, data, headers, is_head)

    def _send_content(self, file: str, data: bytes, headers: dict[str, str], is_head: bool) -> None:
        data = self.hub.served_instead.get(file, data)
        start, status = 0, 200
        if match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        part = data[start:]
        limit = None if is_head else self.hub.break_off_after.get(file)
        self.send_response(status)
        for key, value in {**headers, "Accept-Ranges": "bytes", "Content-Length": str(len(part))}.items():
            self.send_header(key, value)
        self.end_headers()
        if is_head:
            return
        if limit is None:
            self.wfile.write(part)
            return
        if not self.hub.always_breaks:
            del self.hub.break_off_after[file]
        self.wfile.write(part[:limit])
        self.wfile.flush()
        self.close_connection = True

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message, "Code": 10010205001, "Message": message}).encode()
        self._send(status, body, {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
