"""A Google Cloud Storage emulator for tests, and a proxy in front of it that fails on purpose.

Two emulators: gcp-storage-emulator, a Python package, which runs in a thread and ignores preconditions; and
fake-gcs-server, a Go program, which honours them and is built into .cache where Go is installed.
"""

import collections
import contextlib
import http.client
import http.server
import logging
import os
import pathlib
import random
import socket
import struct
import subprocess
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator

import pytest

from pipeline.runners import prism

FAKE_GCS_SERVER = "github.com/fsouza/fake-gcs-server@v1.56.1"
_CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "go"


@contextlib.contextmanager
def python_emulator() -> Iterator[str]:
    """Runs gcp-storage-emulator in threads of this process; yields its URL."""
    from gcp_storage_emulator.server import create_server

    logging.getLogger("api").setLevel(logging.CRITICAL)
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    while server._api._httpd is None:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server._api._httpd.server_address[1]}"
    finally:
        server.stop()


@contextlib.contextmanager
def go_emulator(external_url: str = "") -> Iterator[str]:
    """Runs fake-gcs-server, built first where it is not there yet; yields its URL.

    Links that it hands out begin with `external_url`, a proxy's, where that is given.
    Where there is no Go, or no way to fetch the sources, the test fails in CI and else is skipped.
    """
    give_up = pytest.fail if os.environ.get("CI") else pytest.skip
    binary = _CACHE / FAKE_GCS_SERVER.rsplit("@", 1)[1] / "fake-gcs-server"
    if not binary.exists():
        go = prism.find_go()
        if go is None:
            give_up("Go is not installed: fake-gcs-server cannot be built")
        env = {**os.environ, "GOBIN": str(binary.parent), "GOFLAGS": "-buildvcs=false"}
        built = subprocess.run([go, "install", FAKE_GCS_SERVER], env=env, capture_output=True, text=True, check=False)
        if built.returncode:
            give_up(f"fake-gcs-server cannot be built: {built.stderr.strip()[-300:]}")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [binary, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
         "-external-url", external_url or url, "-log-level", "error"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_until_it_answers(port)
        yield url
    finally:
        process.kill()
        process.wait()


def use(monkeypatch, url: str) -> None:
    """Points all clients of gs:// at `url`, without looking for credentials."""
    import gcsfs
    from apache_beam.internal.gcp import auth

    # Beam would look for them three times, half a minute in all, once in every process.
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    monkeypatch.setattr(auth._Credentials, "_credentials", None)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # no credentials: do not wait for a metadata server
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "tests")
    gcsfs.GCSFileSystem.clear_instance_cache()


def make_bucket(url: str) -> str:
    """Makes a bucket in the emulator at `url`; returns its name."""
    name = f"tests-{uuid.uuid4().hex[:12]}"
    client = _client(url)
    client.create_bucket(name)
    return name


def upload(url: str, bucket: str, name: str, data: bytes) -> None:
    _client(url).bucket(bucket).blob(name).upload_from_string(data)


def upload_tree(url: str, bucket: str, prefix: str, folder: pathlib.Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            upload(url, bucket, f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def download_tree(url: str, bucket: str, prefix: str, folder: pathlib.Path) -> None:
    client = _client(url)
    for name in [blob.name for blob in client.list_blobs(bucket, prefix=prefix + "/")]:
        path = folder / name.removeprefix(prefix + "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client.bucket(bucket).blob(name).download_as_bytes(raw_download=True))


def _client(url: str):
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    return storage.Client(
        project="tests", credentials=AnonymousCredentials(), client_options={"api_endpoint": url}
    )


class FailingProxy:
    """An HTTP proxy in front of an emulator that fails a share of all requests, from a seed.

    A failing request gets a 503, a 429, a connection that is reset before or after the emulator has done its work, or an
    answer that comes late.

    Attributes:
      upstream: URL of the emulator.
      failures: how often each of them happened; "passed" counts the others.
      denied: paths that contain this are answered by 403; "" for none.
    """

    FAILURES = ("503", "429", "reset before", "reset after", "slow")

    def __init__(self, upstream: str = "", *, rate: float, seed: int = 0, slow_secs: float = 0.2):
        self.upstream, self.failures, self.denied = upstream, collections.Counter(), ""
        self._rate, self._slow_secs = rate, slow_secs
        self._rng, self._lock = random.Random(seed), threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                proxy._answer(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):  # what a reset connection raises here
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def _choose(self) -> str:
        with self._lock:
            fails = self._rng.random() < self._rate
            what = self._rng.choice(self.FAILURES) if fails else "passed"
            self.failures[what] += 1
            return what

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = _read_body(handler)
        if self.denied and self.denied in urllib.parse.unquote(handler.path):
            self.failures["403"] += 1
            _reply(handler, 403, b'{"error": {"code": 403, "message": "no access here"}}')
            return
        what = self._choose()
        if what in ("503", "429"):
            _reply(handler, int(what), b'{"error": {"code": %s, "message": "try later"}}' % what.encode())
            return
        if what == "reset before":
            _reset(handler)
            return
        if what == "slow":
            time.sleep(self._slow_secs)
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.upstream).netloc, timeout=60)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(handler.command, handler.path, body=body, headers=headers)
            response = connection.getresponse()
            data = response.read()
            if what == "reset after":
                _reset(handler)
            else:
                _reply(handler, response.status, data, response.getheaders())
        finally:
            connection.close()


_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


def _read_body(handler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    body = b""
    while size := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


def _reply(handler, status: int, data: bytes, headers=(("Content-Type", "application/json"),)) -> None:
    handler.send_response(status)
    for name, value in headers:
        if name.lower() not in _HOP_BY_HOP:
            handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)


def _reset(handler) -> None:
    """Ends the connection with a TCP reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.rfile.close()
    handler.connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_it_answers(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError("fake-gcs-server does not answer")
