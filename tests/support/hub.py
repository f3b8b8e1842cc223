"""A hub on this machine: as much of the Hugging Face hub's API as huggingface_hub asks for models, with faults on demand."""

import collections
import contextlib
import dataclasses
import hashlib
import http.server
import json
import pathlib
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator

_FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>.+)")



@dataclasses.dataclass
class Hub:
    """What there is and what happened.

    Attributes:
      url: for HF_ENDPOINT.
      repositories: by name, the folder of every commit, by its hash.
      branches: by repository, commit by name.
      gated, private: by repository, the token that opens it.
      fail: so many of the next requests are answered with 503.
      cut: so many of the next downloads end after half their bytes.
      pause: seconds before every 64 KiB.
      asked: (method, path) of all requests for models; served: how often each file was downloaded, whole or in part.
      tokens: that came with requests.
    """

    url: str = ""
    repositories: dict[str, dict[str, pathlib.Path]] = dataclasses.field(default_factory=dict)
    branches: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    gated: dict[str, str] = dataclasses.field(default_factory=dict)
    private: dict[str, str] = dataclasses.field(default_factory=dict)
    fail: int = 0
    cut: int = 0
    pause: float = 0.0
    asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    served: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    tokens: set[str | None] = dataclasses.field(default_factory=set)

    def publish(self, name: str, folder: pathlib.Path, branch: str = "main") -> str:
        """Makes a folder the next commit of a repository. Returns its hash."""
        commits = self.repositories.setdefault(name, {})
        commit = hashlib.sha1(f"{name}{len(commits)}".encode()).hexdigest()
        commits[commit] = pathlib.Path(folder)
        self.branches.setdefault(name, {})[branch] = commit
        return commit


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        hub, path = self.hub, urllib.parse.unquote(self.path.partition("?")[0])
        if path != "/api/agent-harnesses":  # a registry that the client looks for once a day
            hub.asked.append((self.command, path))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        hub.tokens.add(token)
        if hub.fail:
            hub.fail -= 1
            return self._say(503, {"error": "busy"})
        found = _API.fullmatch(path) or _FILE.fullmatch(path)
        name = found and found["repository"]
        if name not in hub.repositories or hub.private.get(name, token) != token:
            return self._say(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        commit = hub.branches[name].get(found["revision"], found["revision"])
        if commit not in hub.repositories[name]:
            return self._say(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        folder = hub.repositories[name][commit]
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        if found.re is _API and found["what"] == "revision":
            siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
            return self._say(200, {"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings})
        if found.re is _API:
            return self._say(200, [self._entry(folder, file) for file in files])
        if hub.gated.get(name, token) != token:
            return self._say(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        if not (folder / found["file"]).is_file():
            return self._say(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
        return self._send(commit, folder / found["file"])

    def _entry(self, folder: pathlib.Path, file: pathlib.Path) -> dict:
        data = file.read_bytes()
        entry = {"type": "file", "path": file.relative_to(folder).as_posix(), "size": len(data)}
        entry["oid"] = hashlib.sha1(data).hexdigest()
        if file.suffix in (".safetensors", ".gguf", ".bin"):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _say(self, status: int, value, headers=None):
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send(self, commit: str, file: pathlib.Path):
        data, hub = file.read_bytes(), self.hub
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if first else 200)
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        for key, text in {**headers, "Content-Length": str(len(data) - first)}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "GET":
            return
        hub.served[file.name] += 1
        end = len(data)
        if hub.cut and len(data) - first > 1 << 10:
            hub.cut -= 1
            end, self.close_connection = first + (len(data) - first) // 2, True
        for start in range(first, end, 1 << 16):
            time.sleep(hub.pause)
            with contextlib.suppress(ConnectionError):  # whoever asked is gone
                self.wfile.write(data[start : min(end, start + (1 << 16))])
        if end < len(data):
            self.connection.close()


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers while the context lasts."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
